"""The file format of a note: a small public value in a file of two slots, which a crash cannot damage.

Invariants
- A write overwrites the older slot in place. After a crash the file holds the previous value or the new one.
- A slot holds a write count and a checksum. A slot with a wrong checksum is ignored.
- One write needs one fsync, and no free space on the disk.

>>> file = first(b"one")
>>> offset, slot = following(file, b"two")
>>> file = file[:offset] + slot + file[offset + len(slot):]
>>> latest(file), latest(file[:offset] + bytes(len(slot)))
(b'two', b'one')
"""

import hashlib
import hmac
import struct

SECTOR = 512  # bytes; a disk writes a sector at once, so the slots are in different sectors
_SLOT = struct.Struct(">QB64s")


def first(value: bytes) -> bytes:
    """Return the bytes of a new file that holds a value.

    Args:
        value: at most 64 bytes.

    Returns:
        `2 * SECTOR` bytes.
    """
    return _slot(1, value).ljust(2 * SECTOR, b"\0")


def following(file: bytes, value: bytes) -> tuple[int, bytes]:
    """Return the write that gives a file a new value.

    Args:
        file: the present bytes of the file.
        value: the new value, at most 64 bytes.

    Returns:
        (offset, bytes): write these bytes at this offset of the file, and it holds the value.
    """
    slots = [_read(file, offset) for offset in (0, SECTOR)]
    older = 0 if slots[0][0] < slots[1][0] else 1
    return older * SECTOR, _slot(1 + max(count for count, _ in slots), value)


def latest(file: bytes) -> bytes | None:
    """Return the value that `file` holds, or None if both slots are damaged.

    Args:
        file: the bytes of the file, of any length.
    """
    count, value = max(_read(file, offset) for offset in (0, SECTOR))
    return value if count else None


def _slot(count: int, value: bytes) -> bytes:
    data = _SLOT.pack(count, len(value), value)
    return data + _checksum(data)


def _read(file: bytes, offset: int) -> tuple[int, bytes]:
    data = file[offset : offset + _SLOT.size]
    checksum = file[offset + _SLOT.size : offset + _SLOT.size + 16]
    if len(data) < _SLOT.size or not hmac.compare_digest(checksum, _checksum(data)):
        return 0, b""
    count, length, value = _SLOT.unpack(data)
    return count, value[:length]


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(b"fedmem/note/1\0" + data).digest()[:16]
