"""Convert between `Fields` and Flower's records, with exact keys and raw bytes (I2).

Invariants
- An array travels as its raw little-endian bytes under our own serialisation name, so no array format is parsed.
- A record dict is a `BoundaryViolation` if it holds any record but the named ones, an array of another serialisation,
  or an array whose length does not fit its shape. No memory is allocated from the claims of a header.
- The serialisation name carries the protocol version, in both directions: another version is a `VersionMismatch`.

>>> import numpy as np
>>> from fedmem.federation.wire import Fields
>>> content = to_request(Fields({"w": np.zeros(2, np.uint16)}, {"round": 1}))
>>> sorted(content), from_request(content).scalars
(['config', 'params'], {'round': 1})
"""

import math
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedmem.errors import BoundaryViolation, FedmemError, VersionMismatch
from fedmem.federation.flower import Array, ArrayRecord, ConfigRecord, RecordDict
from fedmem.federation.wire import PROTOCOL, Fields, Scalar, Shapes

_ENCODING = "fedmem.raw.le"
STYPE = f"{_ENCODING}/{PROTOCOL}"
# Public bounds for the shape in a header, far above any model's; numpy itself allows 64 axes.
_MAX_AXES, _MAX_SIZE = 8, 2**40
_DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "int32": np.dtype("<i4")}
_NAMES = {np.dtype(name): name for name in _DTYPES}
PARAMS, CONFIG, UPDATE = "params", "config", "update"


def _arrays(fields: Fields) -> ArrayRecord:
    record = ArrayRecord()
    for name in sorted(fields.arrays):
        array = fields.arrays[name]
        dtype = _NAMES[array.dtype]
        record[name] = Array(dtype, array.shape, STYPE, array.astype(_DTYPES[dtype], copy=False).tobytes())
    return record


def to_request(fields: Fields) -> RecordDict:
    """Return a request's content: parameters and settings, names sorted.

    Args:
        fields: arrays of uint16 or int32, and scalars.
    """
    scalars = {name: fields.scalars[name] for name in sorted(fields.scalars)}
    return RecordDict({PARAMS: _arrays(fields), CONFIG: ConfigRecord(dict(scalars))})


def to_reply(fields: Fields) -> RecordDict:
    """Return a reply's content: the update alone.

    Args:
        fields: the update, arrays of int32, without scalars.

    Raises:
        BoundaryViolation: `fields` holds a scalar.
    """
    if fields.scalars:
        raise BoundaryViolation("A reply holds the update and nothing else; it was not sent.")
    return RecordDict({UPDATE: _arrays(fields)})


def from_request(content: RecordDict) -> Fields:
    """Return the fields of a request; they are not yet checked against the schema.

    Args:
        content: the record dict as it arrived.

    Raises:
        BoundaryViolation: it holds other records, or an array in another encoding or with another length.
        VersionMismatch: it speaks another version of the protocol.
    """
    _only(content, {PARAMS: ArrayRecord, CONFIG: ConfigRecord})
    scalars = cast(dict[str, Scalar], dict(content[CONFIG].items()))
    return Fields(_from_arrays(content[PARAMS]), scalars)


def from_reply(content: RecordDict) -> Fields:
    """Return the fields of a reply; they are not yet checked against the schema.

    Args:
        content: the record dict as it arrived.

    Raises:
        BoundaryViolation, VersionMismatch: as `from_request`.
    """
    _only(content, {UPDATE: ArrayRecord})
    return Fields(_from_arrays(content[UPDATE]))


def _only(content: RecordDict, kinds: dict[str, type]) -> None:
    if {name: type(record) for name, record in content.items()} != kinds:
        raise BoundaryViolation("A message holds other records than its type names; it was not used.")


def _from_arrays(record: ArrayRecord) -> dict[str, NDArray[np.generic]]:
    return {str(name): _from_array(array) for name, array in record.items()}


def _from_array(array: Array) -> NDArray[np.generic]:
    dtype = _DTYPES.get(array.dtype)
    if array.stype != STYPE and array.stype.split("/")[0] == _ENCODING:
        raise VersionMismatch(f"A message speaks another protocol version than {PROTOCOL}. Update the older side.")
    if array.stype != STYPE or dtype is None or not _is_plausible(array.shape):
        raise BoundaryViolation("An array travels in another encoding than the protocol's; it was not used.")
    if len(array.data) != math.prod(array.shape) * dtype.itemsize:
        raise BoundaryViolation("An array has another length than its shape says; it was not used.")
    values: NDArray[np.generic] = np.frombuffer(array.data, dtype).reshape(array.shape)
    return values


def _is_plausible(shape: tuple[int, ...]) -> bool:
    return len(shape) <= _MAX_AXES and all(0 <= size <= _MAX_SIZE for size in shape)


def requested_shapes(content: RecordDict) -> Shapes:
    """Return the names and shapes of a request's parameters; empty if it cannot be read.

    Args:
        content: the request as it arrived.
    """
    try:
        return {name: tuple(array.shape) for name, array in from_request(content).arrays.items()}
    except FedmemError:
        return {}
