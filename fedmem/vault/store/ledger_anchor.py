"""The ledger's head in the keystore: an older database put back is noticed, and no spend is forgotten.

Invariants
- The head is noted after its event is durable, so it is never ahead of the ledger: a crash locks nobody out (I6).
- A ledger that does not hold the noted event, at its place and with its digest, does not open, unless the sealed facts
  say that it was restored from a backup that lacks just this event: then it counts ε as infinite; see `backup`.
- The note of an event that the ledger lost is never written over: what a process finds, the next one finds too.
- What an edit left in a column is compared as bytes, whatever type it has.

    heads.check(core)  # before any event is believed
"""

import contextlib
import hmac
import struct

from sqlalchemy import LargeBinary, cast, select

from fedmem.errors import FedmemError, VerificationFailed
from fedmem.vault.crypto.key_table import RolledBack
from fedmem.vault.crypto.keystore import Keystore
from fedmem.vault.store.core import Core
from fedmem.vault.store.database import EventRow

NOTE = "ledger"
GAP = "gap"
_HEAD = struct.Struct(">Q32s")
_DIGEST = cast(EventRow.digest, LargeBinary)
Head = tuple[int, str]


def head(core: Core) -> Head | None:
    """(number, digest) of the ledger's last event; None where there is none."""
    with core.database.session() as session:
        row = session.execute(select(EventRow.seq, _DIGEST).order_by(EventRow.seq.desc()).limit(1)).first()
    return None if row is None else (row[0], as_text(row[1]))


def as_text(digest: bytes | None) -> str:
    """What the digest column holds, in ASCII; equal to a digest only where it is one."""
    return (digest or b"").decode("ascii", "backslashreplace")


def noted(keystore: Keystore, name: str = NOTE) -> Head | None:
    """The newest head that a keystore knows of."""
    value = keystore.noted(name) or b""
    if len(value) != _HEAD.size:
        return None
    seq, digest = _HEAD.unpack(value)
    return seq, digest.hex()


def packed(head: Head) -> bytes:
    """A head as a keystore notes it; `noted` reads it."""
    return _HEAD.pack(head[0], bytes.fromhex(head[1]))


def note(core: Core) -> None:
    """Note the ledger's head. A keystore that cannot do so now does so after the next event."""
    with contextlib.suppress(FedmemError):
        now, known = head(core), noted(core.keystore)
        if now is not None and now != known and not _lost(core, known):
            core.keystore.note(NOTE, packed(now))


def holds(core: Core, known: Head) -> bool:
    """Whether the ledger holds this event."""
    with core.database.session() as session:
        digest = session.execute(select(_DIGEST).where(EventRow.seq == known[0])).scalar_one_or_none()
    return hmac.compare_digest(as_text(digest), known[1])


def check(core: Core) -> None:
    """Raise VerificationFailed without a ledger, RolledBack where it lacks an event that the keystore knows of."""
    known = noted(core.keystore)  # first: what another process appends meanwhile is held as well
    if EventRow.__tablename__ not in core.database.tables():
        raise VerificationFailed(
            "The vault has lost its privacy ledger, so nothing may be spent. `fedmem backup restore` brings it back."
        )
    if _lost(core, known):
        raise RolledBack(
            "An older database was put back: the privacy ledger lacks what was spent since. Put the newest back, or "
            "restore the whole vault with `fedmem backup restore`."
        )


def _lost(core: Core, known: Head | None) -> bool:
    return known is not None and not holds(core, known) and [*known] != core.table.facts.get(GAP)
