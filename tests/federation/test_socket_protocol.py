"""An update has one size and no header that could be forged; a refusal is a number."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmem.errors import BoundaryViolation, Busy, VersionMismatch
from fedmem.federation import fixedpoint, wire
from fedmem.federation.connection import BadFrame
from fedmem.federation.socket_protocol import BOUNDARY, NOT_NOW, TERMS, decode, encode, refusal, update_bytes
from fedmem.federation.wire import Fields

SHAPES = {"w": (2, 3), "b": (3,), "none": (0,), "one": ()}
SCHEMA = wire.anchor_reply(SHAPES, clip=1.0)
BOUND = fixedpoint.cells(1.0)


def update(fill: int = 0) -> Fields:
    return Fields({name: np.full(shape, fill, np.int32) for name, shape in SHAPES.items()})


@given(st.lists(st.integers(-BOUND, BOUND), min_size=10, max_size=10), st.integers(0, 2**32 - 1))
def test_an_update_comes_back_as_it_was(cells: list[int], number: int) -> None:
    values = np.array(cells, np.int32)
    arrays = {"w": values[:6].reshape(2, 3), "b": values[6:9], "none": values[:0], "one": values[9:].reshape(())}
    fields, back = decode(b"".join(encode(Fields(arrays), number, SCHEMA)), SCHEMA)
    assert (back, fields.digest()) == (number, Fields(arrays).digest())


def test_every_update_has_the_same_size_and_begins_with_its_round() -> None:
    payloads = [b"".join(encode(update(fill), number, SCHEMA)) for fill, number in ((0, 0), (-1, 2**32 - 1))]
    assert {len(payload) for payload in payloads} == {update_bytes(SCHEMA)} == {4 + 4 * 10}
    assert payloads[1] == b"\xff" * 44


@pytest.mark.parametrize("number", [-1, 2**32, 2**64])
def test_an_impossible_round_is_not_sent(number: int) -> None:
    with pytest.raises(BoundaryViolation):
        encode(update(), number, SCHEMA)


def test_fields_of_another_schema_are_not_sent() -> None:
    with pytest.raises(BoundaryViolation):
        encode(Fields({**update().arrays, "loss": np.zeros(1, np.int32)}), 1, SCHEMA)
    with pytest.raises(BoundaryViolation):
        encode(update(BOUND + 1), 1, SCHEMA)


@pytest.mark.parametrize("length", [0, 3, 43, 45, 88])
def test_a_payload_of_another_length_is_not_read(length: int) -> None:
    with pytest.raises(BadFrame):
        decode(bytes(length), SCHEMA)


@pytest.mark.parametrize(
    ("code", "error"),
    [(TERMS, VersionMismatch), (NOT_NOW, Busy), *((code, BoundaryViolation) for code in (BOUNDARY, b"\xff", b""))],
)
def test_a_refusal_is_the_error_of_its_code(code: bytes, error: type[Exception]) -> None:
    assert type(refusal(bytearray(code))) is error
