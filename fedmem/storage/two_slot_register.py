"""Notes: small public values that a keystore keeps beside its secrets, as one file of two halves.

Invariants
- A write goes to the older half, in place: a crash leaves the value before it or the new one, never neither.
- A half carries a count and a check of its bytes; a torn one does not count.
- One write costs one fsync, and no room on a full disk.

>>> file = first(b"one")
>>> at, half = following(file, b"two")
>>> file = file[:at] + half + file[at + len(half):]
>>> latest(file), latest(file[:at] + bytes(len(half)))
(b'two', b'one')
"""

import hashlib
import hmac
import struct

SECTOR = 512  # the halves never share what a disk writes at once
_HALF = struct.Struct(">QB64s")


def first(value: bytes) -> bytes:
    """A new file that holds `value`, of at most 64 bytes."""
    return _half(1, value).ljust(2 * SECTOR, b"\0")


def following(file: bytes, value: bytes) -> tuple[int, bytes]:
    """(offset, bytes) to write into `file` so that it holds `value`."""
    halves = [_read(file, at) for at in (0, SECTOR)]
    older = 0 if halves[0][0] < halves[1][0] else 1
    return older * SECTOR, _half(1 + max(count for count, _ in halves), value)


def latest(file: bytes) -> bytes | None:
    """The value that `file` holds; None where both halves are damaged."""
    count, value = max(_read(file, at) for at in (0, SECTOR))
    return value if count else None


def _half(count: int, value: bytes) -> bytes:
    data = _HALF.pack(count, len(value), value)
    return data + _check(data)


def _read(file: bytes, at: int) -> tuple[int, bytes]:
    data = file[at : at + _HALF.size]
    check = file[at + _HALF.size : at + _HALF.size + 16]
    if len(data) < _HALF.size or not hmac.compare_digest(check, _check(data)):
        return 0, b""
    count, length, value = _HALF.unpack(data)
    return count, value[:length]


def _check(data: bytes) -> bytes:
    return hashlib.sha256(b"fedmem/note/1\0" + data).digest()[:16]
