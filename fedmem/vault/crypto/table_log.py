"""The sealed entries that are appended to the key table: the keys of new items, and their topics.

Invariants
- One entry is one change of the table. It is sealed under a subkey of the epoch key, and bound to the vault, to its
  serial and to all entries before it. So no entry can be changed, moved, or removed from the middle.
- The file begins with the digest of the table that it continues. Entries of an earlier table are not read, so a table
  that was written anew needs no second file to be durable.
- Every entry has a salt of its own. An entry that a crash cut can be written again under the same serial.
- A crash can cut or damage the last entry only. `read_entries` stops before it and reports it as `torn`; the caller
  decides by the serial that was acknowledged whether something is lost.

Layout: magic (4) | SHA-256 of the table (32) | entries. An entry is a length (4 bytes, big-endian) and a sealed cell.

Guarantees
    A destroyed epoch key takes the subkey with it: no key that outlives an erasure opens an older entry (I4).

    | bytes | result |
    |---|---|
    | no file, or a file that continues another table | no entries |
    | the last entry cut or damaged | the entries before it, `torn` |
    | an earlier entry damaged | VerificationFailed |

Source: HKDF is RFC 5869; the cells are those of `container`.
"""

import hashlib
import struct
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from fedmem.errors import VerificationFailed
from fedmem.storage.private_memory import PrivateBuffer, Readable
from fedmem.vault.crypto import container

MAGIC = b"FMT\x01"
_LENGTH = struct.Struct(">I")
_SUBKEY = b"fedmem/key-table-entry/1\x00"
HEADER_BYTES = len(MAGIC) + 32


@dataclass(frozen=True)
class LogPosition:
    """A place in the log, after a number of entries.

    Attributes:
        base: SHA-256 of the table that the log continues, 32 bytes.
        offset: bytes of the file up to here; 0 before the first entry.
        serial: serial of the table with the entries up to here.
        chain: digest of the table and the entries up to here, 32 bytes.
    """

    base: bytes
    offset: int
    serial: int
    chain: bytes


@dataclass(frozen=True)
class LogEntries:
    """The entries that were read, and the place after them.

    Attributes:
        payloads: content of each entry, oldest first.
        position: the place after the last one.
        is_torn: True if bytes follow that are no whole entry.
    """

    payloads: list[PrivateBuffer] = field(repr=False)
    position: LogPosition
    is_torn: bool


def start(table: bytes, serial: int) -> LogPosition:
    """Return the place before the first entry.

    Args:
        table: the bytes of the table's file.
        serial: the serial of that table.
    """
    base = hashlib.sha256(table).digest()
    return LogPosition(base, 0, serial, base)


def continues(header: bytes, position: LogPosition) -> bool:
    """Return True if a log with these first `HEADER_BYTES` bytes continues the table of `position`.

    Args:
        header: the first bytes of the log's file.
        position: a place in the log of the table.
    """
    return header[:HEADER_BYTES] == MAGIC + position.base


def entry_key(epoch_key: bytes, position: LogPosition) -> bytes:
    """Return the 32-byte subkey of the entries that continue one table.

    Guarantees
        It opens neither the table nor the entries of another table, and does not reveal the epoch key (RFC 5869).

    Args:
        epoch_key: 32 bytes, the key that sealed the table.
        position: any place in the log.
    """
    return HKDFExpand(SHA256(), 32, _SUBKEY + position.base).derive(epoch_key)


def seal_entry(key: bytes, vault_id: str, position: LogPosition, payload: Readable) -> tuple[bytes, LogPosition]:
    """Return the bytes to write at `position.offset`, and the place after them.

    Guarantees
        As the module says; each entry has 32 bytes of key commitment and a random salt.

    Args:
        key: the result of `entry_key`.
        vault_id: 32 hex digits.
        position: the place after the last entry.
        payload: content of the entry.
    """
    cell = container.seal_cell(key, payload, identity=_identity(vault_id, position))
    written = (b"" if position.offset else MAGIC + position.base) + _LENGTH.pack(len(cell)) + cell
    return written, _after(position, position.offset + len(written), cell)


def read_entries(key: bytes, vault_id: str, position: LogPosition, data: bytes) -> LogEntries:
    """Open the entries from `position` on.

    Args:
        key: the result of `entry_key`.
        vault_id: 32 hex digits.
        position: a place in this log.
        data: the bytes of the file from `position.offset` on.

    Raises:
        VerificationFailed: an entry before the last one does not open.
    """
    payloads, at = list[PrivateBuffer](), 0
    if position.offset == 0:
        if not continues(data, position):
            return LogEntries([], position, is_torn=False)
        at = HEADER_BYTES
    start_offset = position.offset
    while len(data) - at >= _LENGTH.size:
        end = at + _LENGTH.size + _LENGTH.unpack_from(data, at)[0]
        cell = data[at + _LENGTH.size : end]
        try:
            payloads.append(container.open_cell(key, cell, identity=_identity(vault_id, position)))
        except VerificationFailed:
            if end < len(data):
                raise VerificationFailed(
                    f"The key table's log is damaged after entry {position.serial}. Restore the vault from a backup."
                ) from None
            break
        position, at = _after(position, start_offset + end, cell), end
    return LogEntries(payloads, position, is_torn=at < len(data))


def _after(position: LogPosition, offset: int, cell: bytes) -> LogPosition:
    chain = hashlib.sha256(position.chain + cell).digest()
    return LogPosition(position.base, offset, position.serial + 1, chain)


def _identity(vault_id: str, position: LogPosition) -> str:
    return f"keytable-entry/{vault_id}/{position.serial + 1}/{position.chain.hex()}"
