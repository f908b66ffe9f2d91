"""The ledger's head in the keystore: an older database put back is noticed, and no spend is forgotten.

Invariants
- The head is noted after its event is durable, so it is never ahead of the ledger: a crash locks nobody out (I6).
- A ledger that does not hold the noted event, at its place and with its digest, does not open, unless the sealed facts
  say that it was restored from a backup that lacks just this event: then it counts ε as infinite; see `backup`.
"""

import contextlib
import hmac
import struct

from sqlalchemy import select

from fedmem.errors import FedmemError
from fedmem.vault.core import Core
from fedmem.vault.database import EventRow
from fedmem.vault.keys import Keystore
from fedmem.vault.keytable import RolledBack

NOTE = "ledger"
GAP = "gap"
_HEAD = struct.Struct(">Q32s")
Head = tuple[int, str]


def head(core: Core) -> Head | None:
    """(number, digest) of the ledger's last event; None where there is none."""
    with core.database.session() as session:
        row = session.execute(select(EventRow.seq, EventRow.digest).order_by(EventRow.seq.desc()).limit(1)).first()
    return None if row is None else (row[0], row[1])


def noted(keystore: Keystore) -> Head | None:
    """The newest head that a keystore knows of."""
    value = keystore.noted(NOTE) or b""
    if len(value) != _HEAD.size:
        return None
    seq, digest = _HEAD.unpack(value)
    return seq, digest.hex()


def note(core: Core) -> None:
    """Note the ledger's head. A keystore that cannot do so now does so after the next event."""
    with contextlib.suppress(FedmemError):
        now = head(core)
        if now is not None and now != noted(core.keystore):
            core.keystore.note(NOTE, _HEAD.pack(now[0], bytes.fromhex(now[1])))


def holds(core: Core, known: Head) -> bool:
    """Whether the ledger holds this event."""
    with core.database.session() as session:
        digest = session.execute(select(EventRow.digest).where(EventRow.seq == known[0])).scalar_one_or_none()
    return digest is not None and hmac.compare_digest(digest, known[1])


def check(core: Core) -> None:
    """Raise RolledBack where the keystore knows of an event that the ledger does not hold."""
    known = noted(core.keystore)
    if known is not None and not holds(core, known) and [*known] != core.table.facts.get(GAP):
        raise RolledBack(
            "An older database was put back: the privacy ledger lacks what was spent since. Put the newest back, or "
            "restore the whole vault with `fedmem backup restore`."
        )
