"""Convert between `Fields` and Flower's records, with exact keys and raw bytes (I2).

Invariants
- An array travels as its raw little-endian bytes under our own serialisation name, so no array format is parsed.
- A message is read against its schema: records, names, dtypes, shapes and lengths are compared before a cell is read.
  Nothing is allocated for it; the arrays are views of the bytes that arrived.
- The serialisation name carries the protocol version, in both directions: another version is a `VersionMismatch`.

>>> import numpy as np
>>> from fedmem.federation.wire import Fields, anchor_request
>>> content = to_request(Fields({"w": np.zeros(2, np.uint16)}, {"round": 1}))
>>> sorted(content), from_request(content, anchor_request({"w": (2,)})).scalars
(['config', 'params'], {'round': 1})
"""

import math
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedmem.errors import BoundaryViolation, VersionMismatch
from fedmem.federation.flower import Array, ArrayRecord, ConfigRecord, RecordDict
from fedmem.federation.wire import PROTOCOL, ArraySpec, Fields, Scalar, Schema, Shapes

_ENCODING = "fedmem.raw.le"
STYPE = f"{_ENCODING}/{PROTOCOL}"
# Public bounds for the shapes of a request that no schema is at hand for; far above any model's.
_MAX_AXES, _MAX_SIZE = 8, 2**31
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


class TemplateMismatch(BoundaryViolation):
    """A message whose arrays have other names, dtypes or shapes than the schema: its sender has another release."""


def from_request(content: RecordDict, schema: Schema) -> Fields:
    """Return the fields of a request whose template is the schema's; its cells and scalars are not yet checked.

    Args:
        content: the record dict as it arrived.
        schema: the request schema of the device's own release.

    Raises:
        BoundaryViolation: it holds other records, or an array in another encoding or with another length.
        TemplateMismatch: its arrays have other names, dtypes or shapes.
        VersionMismatch: it speaks another version of the protocol.
    """
    _check_records(content, {PARAMS: ArrayRecord, CONFIG: ConfigRecord})
    scalars = cast(dict[str, Scalar], dict(content[CONFIG].items()))
    return Fields(_read_arrays(content[PARAMS], schema), scalars)


def from_reply(content: RecordDict, schema: Schema) -> Fields:
    """Return the fields of a reply whose template is the schema's; its cells are not yet checked.

    Args:
        content: the record dict as it arrived.
        schema: the reply schema of the coordinator's release.

    Raises:
        BoundaryViolation, TemplateMismatch, VersionMismatch: as `from_request`.
    """
    _check_records(content, {UPDATE: ArrayRecord})
    return Fields(_read_arrays(content[UPDATE], schema))


def _check_records(content: RecordDict, kinds: dict[str, type]) -> None:
    if len(content) != len(kinds) or {name: type(record) for name, record in content.items()} != kinds:
        raise BoundaryViolation("A message holds other records than its type names; it was not used.")


def _read_arrays(record: ArrayRecord, schema: Schema) -> dict[str, NDArray[np.generic]]:
    _check_version(next(iter(record.values()), None))
    if len(record) != len(schema.arrays) or record.keys() != schema.arrays.keys():
        raise TemplateMismatch("A message holds other arrays than this release has; it was not used.")
    return {name: _read_array(record[name], spec) for name, spec in schema.arrays.items()}


def _check_version(array: Array | None) -> None:
    """Raise VersionMismatch if the first array of a message names another version of our encoding."""
    if array is not None and array.stype != STYPE and array.stype[: len(_ENCODING) + 1] in (_ENCODING, f"{_ENCODING}/"):
        raise VersionMismatch(f"A message speaks another protocol version than {PROTOCOL}. Update the older side.")


def _read_array(array: Array, spec: ArraySpec) -> NDArray[np.generic]:
    if array.stype != STYPE:
        raise BoundaryViolation("An array travels in another encoding than the protocol's; it was not used.")
    if array.dtype != spec.dtype or array.shape != spec.shape:
        raise TemplateMismatch("An array has another dtype or shape than in this release; it was not used.")
    dtype = _DTYPES[spec.dtype]
    if type(array.data) is not bytes or len(array.data) != math.prod(spec.shape) * dtype.itemsize:
        raise BoundaryViolation("An array has another length than its shape says; it was not used.")
    values: NDArray[np.generic] = np.frombuffer(array.data, dtype).reshape(spec.shape)
    return values


def requested_shapes(content: RecordDict) -> Shapes:
    """Return names and shapes of a request's parameters; empty if they are not those of a request.

    A device that has no release of its own at hand answers with zeros in these shapes. Their sizes follow from the
    bytes that arrived, never from a header.

    Args:
        content: the request as it arrived.
    """
    try:
        _check_records(content, {PARAMS: ArrayRecord, CONFIG: ConfigRecord})
        return dict(_plausible_shapes(content[PARAMS]))
    except Exception:  # noqa: BLE001  (a crafted record may break any access)
        return {}


def _plausible_shapes(record: ArrayRecord) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, array in record.items():
        shape = tuple(array.shape)
        if array.stype != STYPE or len(shape) > _MAX_AXES or not all(0 <= size <= _MAX_SIZE for size in shape):
            raise BoundaryViolation("A request holds an array that is not the protocol's; it was not used.")
        if len(array.data) != math.prod(shape) * _DTYPES["uint16"].itemsize:
            raise BoundaryViolation("An array has another length than its shape says; it was not used.")
        yield str(name), shape
