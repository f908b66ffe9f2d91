"""The protocol between the two processes of a device: kinds of frames, their sizes, and arrays as raw bytes.

Invariants
- A connection begins with the run's token and the digest of the terms. Before these, no request is answered.
- Shapes, names and dtypes never travel, so none can be forged.
- An update is a round number and the arrays of the reply schema, names sorted, as little-endian bytes. All updates of a
  schema have the same size.
- A refusal is a number; no text of an error crosses the socket.

| from the network-facing process | answer |
|---|---|
| HELLO: token, terms digest | WELCOME, or REFUSED(TERMS) |
| ROUND: round | ADMITTED; or REFUSED(BOUNDARY), or REFUSED(BUDGET) |
| RECORDS | TEXT for each shareable record, then END; or REFUSED(NOT_NOW) |
| UPDATE: round, arrays | RELEASED: digest of the entered update; or REFUSED(BOUNDARY), (BUDGET) or (NOT_NOW) |

>>> import numpy as np
>>> schema = wire.anchor_reply({"w": (2,)}, clip=1.0)
>>> parts = encode(wire.Fields({"w": np.array([1, -2], np.int32)}), 3, schema)
>>> fields, number = decode(b"".join(parts), schema)
>>> fields.arrays["w"].tolist(), number
([1, -2], 3)
"""

import math
import struct

import numpy as np
from numpy.typing import NDArray

from fedmem.errors import BoundaryViolation, BudgetExceeded, Busy, FedmemError, VersionMismatch
from fedmem.federation import wire
from fedmem.federation.connection import BadFrame
from fedmem.federation.wire import Fields, Schema

HELLO, RECORDS, UPDATE, ROUND = 1, 2, 3, 4
WELCOME, TEXT, END, RELEASED, REFUSED, ADMITTED = 11, 12, 13, 14, 15, 16
TERMS, BOUNDARY, NOT_NOW, BUDGET = b"\1", b"\2", b"\3", b"\4"

TOKEN_BYTES, DIGEST_BYTES, ROUND_BYTES = 32, 32, 4
MAX_TEXT = 64 << 20  # bytes of one record's text
_ROUND = struct.Struct("<I")


def update_bytes(schema: Schema) -> int:
    """Return the length of every UPDATE frame of this schema, in bytes.

    Args:
        schema: the schema of the reply.
    """
    return _ROUND.size + schema.nbytes


def encode(fields: Fields, number: int, schema: Schema) -> list[bytes]:
    """Return the payload of an UPDATE, in parts.

    Args:
        fields: the update.
        number: number of the round, in [0, 2^32); 0 for a reply to no round.
        schema: the schema of the reply.

    Raises:
        BoundaryViolation: the fields are of another schema, or the round is out of its range.
    """
    wire.check(fields, schema)
    first = encode_round(number)
    arrays = (np.ascontiguousarray(fields.arrays[name]) for name in sorted(schema.arrays))
    little = (array.astype(array.dtype.newbyteorder("<"), copy=False) for array in arrays)
    return [first, *(array.tobytes() for array in little)]


def encode_round(number: int) -> bytes:
    """Return the payload of a ROUND.

    Args:
        number: number of the round.

    Raises:
        BoundaryViolation: the number is outside [0, 2^32).
    """
    if not 0 <= number < 2**32:
        raise BoundaryViolation("An answer names an impossible round; it was not sent.")
    return _ROUND.pack(number)


def decode_round(payload: bytes | bytearray) -> int:
    """Return the round of a ROUND.

    Args:
        payload: the payload of the frame.

    Raises:
        BadFrame: the payload has another length.
    """
    if len(payload) != ROUND_BYTES:
        raise BadFrame("A round has another length than the protocol says; it was not read.")
    return int(_ROUND.unpack(payload)[0])


def decode(payload: bytes | bytearray, schema: Schema) -> tuple[Fields, int]:
    """Return (fields, round) of an UPDATE.  The gate checks the ranges of values.

    Args:
        payload: the payload of an UPDATE frame.
        schema: the schema of the reply.

    Raises:
        BadFrame: the payload has another length.
    """
    if len(payload) != update_bytes(schema):
        raise BadFrame("An update has another length than its schema says; it was not read.")
    arrays, offset = dict[str, NDArray[np.generic]](), _ROUND.size
    for name, spec in sorted(schema.arrays.items()):
        little, count = np.dtype(spec.dtype).newbyteorder("<"), math.prod(spec.shape)
        values = np.frombuffer(payload, little, count, offset).reshape(spec.shape)
        arrays[name] = values.astype(np.dtype(spec.dtype), copy=False)
        offset += values.nbytes
    return Fields(arrays), int(_ROUND.unpack_from(payload)[0])


def refusal(code: bytes | bytearray) -> FedmemError:
    """Return the error for the code of a REFUSED frame.

    Args:
        code: payload of the frame, one byte; an unknown one counts as BOUNDARY.
    """
    if code == TERMS:
        return VersionMismatch("The two processes of this device hold different terms. Start both from one file.")
    if code == NOT_NOW:
        return Busy("The vault is busy: it could give no records or enter no egress line. Nothing was sent; try again.")
    if code == BUDGET:
        return BudgetExceeded("The device's own budget or policy does not admit this round; nothing was computed.")
    return BoundaryViolation("The vault did not release an update: the schema or the plan does not allow it.")
