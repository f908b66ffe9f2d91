"""The schemas of messages: one for each message type and direction, checked before sending and on receipt (I2).

Invariants
- A message holds exactly the arrays and scalars that its schema names. A missing or an additional one, another shape,
  dtype, range or size, or a NaN is a `BoundaryViolation`. Errors name a field by its place in the schema, and never
  a value.
- A reply is the update and nothing else: no loss, no example count, no timing, no error text.
- Numbers travel as raw little-endian bytes. No array format is parsed, and nothing is unpickled.
- Parameters travel to devices as bf16 bits in uint16; updates travel back as int32 grid cells.
- A request names its protocol version, which is checked first. The arrays of a reply name it in their encoding.

>>> import numpy as np
>>> schema = anchor_reply({"w": (2,)}, clip=1.0)
>>> check(Fields({"w": np.zeros(2, np.int32)}), schema).nbytes
8
>>> check(Fields({"w": np.zeros(2, np.int32)}, {"loss": 0.5}), schema)
Traceback (most recent call last):
    ...
fedmem.errors.BoundaryViolation: A train.anchor reply holds a scalar that its schema does not name; it was not used.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmem.errors import BoundaryViolation, VersionMismatch
from fedmem.federation import bf16, fixedpoint
from fedmem.storage.canonical import canonical_json

Scalar = int | float | str
Shapes = Mapping[str, tuple[int, ...]]
Params = dict[str, NDArray[np.float32]]

TRAIN_ANCHOR = "train.anchor"

# 2: server optimisers, deadlines, and this number itself.
PROTOCOL = 2

_MAX_BYTES = 2**31 - 1
_EXPONENT = 0x7F80  # of a bf16


@dataclass(frozen=True)
class Fields:
    """The content of one message, without Flower.

    Attributes:
        arrays: arrays by name.
        scalars: scalars by name.
    """

    arrays: Mapping[str, NDArray[np.generic]]
    scalars: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays together."""
        return sum(array.nbytes for array in self.arrays.values())

    def digest(self) -> str:
        """Return the SHA-256 over names, dtypes, shapes, bytes and scalars, names sorted; hex."""
        arrays = sorted(self.arrays.items())
        head = _head(tuple((name, array.dtype.str, array.shape) for name, array in arrays))
        scalars = canonical_json(dict(self.scalars)) if self.scalars else b"{}"
        sha = hashlib.sha256(b"[" + head + b"," + scalars + b"]")
        for _, array in arrays:
            sha.update(np.ascontiguousarray(array).data)
        return sha.hexdigest()


# All replies of a federation have the same head.
@lru_cache(maxsize=16)
def _head(arrays: tuple[tuple[str, str, tuple[int, ...]], ...]) -> bytes:
    return canonical_json({name: [dtype, list(shape)] for name, dtype, shape in arrays})


@dataclass(frozen=True)
class ArraySpec:
    """One array of a schema.

    Attributes:
        shape: its shape.
        dtype: "uint16" (bf16 bits, all finite) or "int32" (grid cells).
        bound: greatest absolute value of a grid cell; None for no bound.
    """

    shape: tuple[int, ...]
    dtype: str
    bound: int | None = None

    @cached_property
    def kind(self) -> np.dtype[Any]:
        """The numpy dtype."""
        return np.dtype(self.dtype)

    def holds(self, array: NDArray[np.generic]) -> bool:
        """Return True if every value of the array is in range.

        Args:
            array: an array of this dtype.
        """
        if not array.size:
            return True
        if self.dtype == "uint16":
            # All ones in the exponent is an infinity or a NaN.
            return bool(np.maximum.reduce(array.view(np.uint16) & np.uint16(_EXPONENT), axis=None) < _EXPONENT)
        if self.bound is None:
            return True
        low, high = np.minimum.reduce(array, axis=None), np.maximum.reduce(array, axis=None)
        return bool(-self.bound <= low and high <= self.bound)


@dataclass(frozen=True)
class ScalarSpec:
    """One scalar of a schema.

    Attributes:
        kind: its exact type.
        low: the least number.
        high: the greatest number.
        length: length of a text, in characters.
    """

    kind: type[int] | type[float] | type[str]
    low: float = -math.inf
    high: float = math.inf
    length: int = 0


@dataclass(frozen=True)
class Schema:
    """All arrays and scalars of one message type and direction.

    Attributes:
        message: message type, such as `train.anchor`.
        direction: "request" or "reply".
        arrays: all arrays by name.
        scalars: all scalars by name.
    """

    message: str
    direction: str
    arrays: Mapping[str, ArraySpec]
    scalars: Mapping[str, ScalarSpec] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.message} {self.direction}"

    @cached_property
    def nbytes(self) -> int:
        """The bytes of all arrays of such a message together."""
        return sum(math.prod(s.shape) * s.kind.itemsize for s in self.arrays.values())

    @cached_property
    def ordered(self) -> list[tuple[str, ArraySpec]]:
        """The arrays, sorted by name. Errors name an array by its place in this list."""
        return sorted(self.arrays.items())

    @cached_property
    def ordered_scalars(self) -> list[tuple[str, ScalarSpec]]:
        """The scalars, sorted by name."""
        return sorted(self.scalars.items())


def _violation(schema: Schema, fault: str) -> BoundaryViolation:
    return BoundaryViolation(f"A {schema.name} {fault}; it was not used.")


def anchor_request(shapes: Shapes) -> Schema:
    """Return the schema from coordinator to device: parameters in bf16 and the public settings of the round.

    Args:
        shapes: names and shapes of the federated parameters.
    """
    return Schema(
        TRAIN_ANCHOR,
        "request",
        {name: ArraySpec(tuple(shape), "uint16") for name, shape in shapes.items()},
        {
            "protocol": ScalarSpec(int, PROTOCOL, PROTOCOL),
            "round": ScalarSpec(int, 1, 10**6),
            "seed": ScalarSpec(int, 0, 2**62),
            "steps": ScalarSpec(int, 0, 10**5),
            "batch": ScalarSpec(int, 1, 10**4),
            "learning_rate": ScalarSpec(float, 0.0, 10.0),
            "memory_learning_rate": ScalarSpec(float, 0.0, 10.0),
            "plan": ScalarSpec(str, length=64),
        },
    )


def anchor_reply(shapes: Shapes, clip: float) -> Schema:
    """Return the schema from device to coordinator: the update, clipped to `clip`, and nothing else.

    Args:
        shapes: names and shapes of the federated parameters.
        clip: the plan's clip norm, which bounds a grid cell.
    """
    bound = fixedpoint.cells(clip)
    return Schema(
        TRAIN_ANCHOR, "reply", {name: ArraySpec(tuple(shape), "int32", bound) for name, shape in shapes.items()}
    )


def check(fields: Fields, schema: Schema) -> Fields:
    """Return `fields` unchanged if they are exactly what `schema` names.

    Guarantees: only messages with these keys, shapes, dtypes and ranges pass. The size of a message therefore does not
    depend on the content of a device.

    Args:
        fields: the content of a message.
        schema: the schema of its message type and direction.

    Raises:
        BoundaryViolation: the fields are not those of the schema.
        VersionMismatch: the request is of another protocol version.
    """
    _check_protocol(fields, schema)
    if schema.nbytes > _MAX_BYTES:
        raise _violation(schema, "would be larger than a message can be")
    for label, actual, expected in (
        ("an array", fields.arrays, schema.arrays),
        ("a scalar", fields.scalars, schema.scalars),
    ):
        if actual.keys() != expected.keys():
            fault = f"holds {label} that its schema does not name"
            if not actual.keys() - expected.keys():
                fault = f"lacks {label} that its schema names"
            raise _violation(schema, fault)
    for place, (name, array_spec) in enumerate(schema.ordered):
        _check_array(fields.arrays[name], array_spec, schema, place)
    for name, scalar_spec in schema.ordered_scalars:
        _check_scalar(fields.scalars[name], scalar_spec, schema, name)
    return fields


def _check_protocol(fields: Fields, schema: Schema) -> None:
    # Checked first: another version has other fields, and the error should name the version, not a field.
    if "protocol" in schema.scalars and fields.scalars.get("protocol", PROTOCOL) != PROTOCOL:
        raise VersionMismatch(f"A {schema.name} is not of protocol version {PROTOCOL}. Update the older side.")


def _check_array(array: NDArray[np.generic], spec: ArraySpec, schema: Schema, place: int) -> None:
    if type(array) is not np.ndarray or array.dtype != spec.kind or array.shape != spec.shape:
        raise _violation(schema, f"has another dtype or shape at array {place}")
    if not spec.holds(array):
        raise _violation(schema, f"has a value out of range at array {place}")


def _check_scalar(value: Scalar, spec: ScalarSpec, schema: Schema, name: str) -> None:
    # `type is`: a bool is an instance of int and must not pass as one.
    if type(value) is not spec.kind:
        raise _violation(schema, f"has another type at {name}")
    is_in_range = len(value) == spec.length if isinstance(value, str) else spec.low <= value <= spec.high
    if not is_in_range:
        raise _violation(schema, f"has a value out of range at {name}")


def shapes_of(params: Mapping[str, NDArray[np.generic]]) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of parameters, sorted by name.

    Args:
        params: arrays by name.
    """
    return {name: tuple(params[name].shape) for name in sorted(params)}


def pack(params: Params) -> dict[str, NDArray[np.uint16]]:
    """Return the parameters as a request carries them: bf16 bits in uint16, sorted by name.

    Args:
        params: float32 arrays by name.
    """
    return {name: bf16.encode(params[name]) for name in sorted(params)}


def unpack(arrays: Mapping[str, NDArray[np.generic]]) -> Params:
    """Return the float32 parameters of a request; the training of a device starts from them.

    Args:
        arrays: bf16 bits in uint16, by name.
    """
    return {name: bf16.decode(arrays[name].view(np.uint16)) for name in sorted(arrays)}
