"""Measure the payload of a message as Flower serialises it, without a copy of its arrays.

Invariants
- `measure_arrays` gives the size and the digest of the bytes that Flower's own serialisation would make. Only heads are
  built; the data of an array goes from where it lies into the hash.
- `count_bytes` reads no data and never raises, whatever a peer put into the content.

>>> from fedmem.federation.flower import Array, ArrayRecord
>>> measure_arrays(RecordDict({"update": ArrayRecord({"w": Array("int32", (1,), "raw", bytes(4))})})).nbytes
40
"""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from fedmem.federation.flower import Array, ArrayRecord, RecordDict

Pieces = list[bytes]
_ITEMS, _KEY, _VALUE = 1, 1, 2  # numbers of the fields in flwr/proto/recorddict.proto
_DTYPE, _SHAPE, _STYPE, _DATA = 1, 2, 3, 4


class Evidence(NamedTuple):
    """The size and the digest of a payload.

    Attributes:
        nbytes: bytes of the payload.
        sha256: SHA-256 of the payload, in hex.
    """

    nbytes: int
    sha256: str


def measure_payload(data: bytes) -> Evidence:
    """Return size and digest of a payload.

    Args:
        data: the payload.
    """
    return Evidence(len(data), hashlib.sha256(data).hexdigest())


def measure_arrays(content: RecordDict) -> Evidence:
    """Return size and digest of a content that holds array records alone, as Flower serialises it.

    Args:
        content: the content, with shapes of sizes from 0 to 2^31 - 1.
    """
    pieces = [piece for name, record in content.items() for piece in _item(name, _record(record))]
    sha = hashlib.sha256()
    for piece in pieces:
        sha.update(piece)
    return Evidence(sum(map(len, pieces)), sha.hexdigest())


def _record(record: ArrayRecord) -> Pieces:
    return [piece for name, array in record.items() for piece in _item(name, _array(array))]


def _item(name: str, value: Pieces) -> Pieces:
    return _field(_ITEMS, [*_text(_KEY, name), *_field(_VALUE, value)])


def _array(array: Array) -> Pieces:
    shape = b"".join(map(_varint, array.shape))
    return [
        *_text(_DTYPE, array.dtype),
        *(_field(_SHAPE, [shape]) if shape else []),
        *_text(_STYPE, array.stype),
        *(_field(_DATA, [array.data]) if array.data else []),
    ]


def _text(number: int, text: str) -> Pieces:
    return _field(number, [text.encode()]) if text else []


def _field(number: int, value: Pieces) -> Pieces:
    return [_varint(number << 3 | 2), _varint(sum(map(len, value))), *value]


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def count_bytes(content: Any) -> int:
    """Return about how many bytes of data and names a content holds; 0 for one that cannot be walked.

    Args:
        content: a content as it arrived; nothing of it is trusted.
    """
    try:
        return sum(_lengths(content))
    except Exception:  # noqa: BLE001  (a crafted content may break any access)
        return 0


def _lengths(content: Any) -> Iterator[int]:
    for name, record in content.items():
        yield len(name)
        for key, value in record.items():
            yield len(key)
            yield len(value.data) if isinstance(value, Array) else len(value) if isinstance(value, bytes | str) else 8
