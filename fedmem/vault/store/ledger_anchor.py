"""The ledger's head in the keystore: an older database that is put back is noticed, and no spend is forgotten.

Invariants
- The head is noted after its event is durable, so it is never ahead of the ledger: a crash locks nobody out (I6).
- A ledger without the noted event, at its place and with its digest, does not open. There is one exception: the sealed
  facts say that the ledger was restored from a backup that lacks this event. Then ε counts as infinite; see `backup`.
- A copy of the vault that includes its keystore is not noticed: put back as a whole, it has forgotten what was spent
  since, and nothing in it can tell.
- The note of an event that the ledger lost is never overwritten, so that every later process notices the loss too.
- The digest column is compared as bytes, because an edit may leave a value of any type in it.

    ledger_anchor.check(core)  # before any event is believed
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
    """Return (number, digest) of the ledger's last event; None if the ledger is empty.

    Args:
        core: an open vault.
    """
    with core.database.session() as session:
        row = session.execute(select(EventRow.seq, _DIGEST).order_by(EventRow.seq.desc()).limit(1)).first()
    return None if row is None else (row[0], digest_as_text(row[1]))


def digest_as_text(digest: bytes | None) -> str:
    """Return the content of the digest column in ASCII. It equals a digest only if the column holds that digest.

    Args:
        digest: the value of the column; None if the row is missing.
    """
    return (digest or b"").decode("ascii", "backslashreplace")


def read_note(keystore: Keystore, name: str = NOTE) -> Head | None:
    """Return the newest head that a keystore knows; None if it knows none.

    Args:
        keystore: the keystore of the vault; a bare one is enough.
        name: name of the note; the egress ledger has its own.

    Returns:
        Number and digest (hex) of an event; None if there is no valid note.
    """
    value = keystore.noted(name) or b""
    if len(value) != _HEAD.size:
        return None
    seq, digest = _HEAD.unpack(value)
    return seq, digest.hex()


def pack(head: Head) -> bytes:
    """Return a head as the bytes of a keystore's note; `read_note` reads them.

    Args:
        head: number from 0, and digest, 64 hex digits.

    Returns:
        40 bytes.
    """
    return _HEAD.pack(head[0], bytes.fromhex(head[1]))


def write_note(core: Core) -> None:
    """Note the ledger's head. A failure of the keystore is ignored: the head is noted after the next event.

    Args:
        core: a vault that is open for writing, after a durable change.
    """
    with contextlib.suppress(FedmemError):
        last, noted_head = head(core), read_note(core.keystore)
        if last is not None and last != noted_head and not _is_lost(core, noted_head):
            core.keystore.note(NOTE, pack(last))


def has_event(core: Core, expected: Head) -> bool:
    """Return True if the ledger holds the event of this head, at its place and with its digest.

    Args:
        core: an open vault.
        expected: number and digest of an event.
    """
    with core.database.session() as session:
        digest = session.execute(select(_DIGEST).where(EventRow.seq == expected[0])).scalar_one_or_none()
    return hmac.compare_digest(digest_as_text(digest), expected[1])


def check(core: Core) -> None:
    """Check that the ledger holds the event that the keystore noted.

    Args:
        core: an open vault.

    Raises:
        VerificationFailed: the vault has no ledger.
        RolledBack: the ledger lacks the event.
    """
    noted_head = read_note(core.keystore)  # first: an event that another process appends in between comes after it
    if EventRow.__tablename__ not in core.database.tables():
        raise VerificationFailed(
            "The vault has lost its privacy ledger, so nothing may be spent. `fedmem backup restore` brings it back."
        )
    if _is_lost(core, noted_head):
        raise RolledBack(
            "An older database was put back: the privacy ledger lacks later spends. Put the newest back, or "
            "restore the whole vault with `fedmem backup restore`."
        )


def _is_lost(core: Core, noted_head: Head | None) -> bool:
    """Return True if the ledger lacks the noted event, and the loss is not the known gap of a restored backup."""
    return noted_head is not None and not has_event(core, noted_head) and [*noted_head] != core.table.facts.get(GAP)
