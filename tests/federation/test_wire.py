from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedmem.errors import BoundaryViolation, VersionMismatch
from fedmem.federation import fixedpoint, wire
from fedmem.federation.wire import Fields

SHAPES = {"w": (2, 3), "b": (3,)}
REQUEST = wire.anchor_request(SHAPES)
REPLY = wire.anchor_reply(SHAPES, clip=1.0)
BOUND = fixedpoint.cells(1.0)


def request(**scalars: Any) -> Fields:
    good = {
        "protocol": wire.PROTOCOL,
        "round": 1,
        "seed": 3,
        "steps": 2,
        "batch": 4,
        "learning_rate": 0.1,
        "memory_learning_rate": 0.0,
        "plan": "a" * 64,
    }
    return Fields({n: np.zeros(s, np.uint16) for n, s in SHAPES.items()}, {**good, **scalars})


def reply(**arrays: Any) -> Fields:
    return Fields({**fixedpoint.zeros(SHAPES), **arrays})


def test_what_the_schema_names_passes() -> None:
    assert wire.check(request(), REQUEST).nbytes == REQUEST.nbytes
    assert wire.check(reply(b=np.full(3, -BOUND, np.int32)), REPLY).nbytes == REPLY.nbytes


BAD_REPLIES = {
    "an extra array": reply(loss=np.zeros(1, np.int32)),
    "a missing array": Fields({"w": np.zeros((2, 3), np.int32)}),
    "another shape": reply(b=np.zeros(4, np.int32)),
    "another rank": reply(b=np.zeros((3, 1), np.int32)),
    "another dtype": reply(b=np.zeros(3, np.int64)),
    "another byte order": reply(b=np.zeros(3, ">i4")),
    "floats": reply(b=np.zeros(3, np.float32)),
    "objects": reply(b=np.array([None] * 3)),
    "a list": reply(b=[0, 0, 0]),
    "one cell over": reply(b=np.array([0, 0, BOUND + 1], np.int32)),
    "the lowest int32": reply(b=np.array([0, 0, -(2**31)], np.int32)),
    "an extra scalar": replace(reply(), scalars={"num-examples": 1}),
}


@pytest.mark.parametrize("fields", BAD_REPLIES.values(), ids=BAD_REPLIES.keys())
def test_a_reply_that_the_schema_does_not_name_is_refused(fields: Fields) -> None:
    with pytest.raises(BoundaryViolation):
        wire.check(fields, REPLY)


BAD_SCALARS = [
    ("round", 0), ("round", 10**7), ("round", True), ("round", 1.0), ("seed", -1), ("learning_rate", float("nan")),
    ("learning_rate", float("inf")), ("learning_rate", 1), ("plan", "a" * 63), ("plan", b"a" * 64), ("steps", [1]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD_SCALARS)
def test_a_request_with_a_scalar_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(BoundaryViolation):
        wire.check(request(**{name: value}), REQUEST)


@pytest.mark.parametrize("version", [1, 3, 0, True, "2", 2.5])
def test_a_request_of_another_protocol_is_refused_for_its_version(version: Any) -> None:
    with pytest.raises(VersionMismatch):
        # Another version names other fields as well: the reason is the version all the same.
        wire.check(request(protocol=version, note="new in that version"), REQUEST)
    with pytest.raises(BoundaryViolation):
        wire.check(Fields(request().arrays, {n: v for n, v in request().scalars.items() if n != "protocol"}), REQUEST)


def test_a_request_lacking_or_adding_a_scalar_is_refused() -> None:
    with pytest.raises(BoundaryViolation):
        wire.check(request(note="hello"), REQUEST)
    with pytest.raises(BoundaryViolation):
        wire.check(Fields(request().arrays, {"round": 1}), REQUEST)


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0x7F81])
def test_a_parameter_that_is_not_finite_is_refused(bits: int) -> None:
    fields = request()
    bad = Fields({**fields.arrays, "b": np.array([0, 0, bits], np.uint16)}, fields.scalars)
    with pytest.raises(BoundaryViolation):
        wire.check(bad, REQUEST)


def test_an_error_names_no_value() -> None:
    secret = reply(**{"her diagnosis": np.full(3, 77, np.int32)})
    with pytest.raises(BoundaryViolation) as caught:
        wire.check(secret, REPLY)
    assert "diagnosis" not in str(caught.value)
