"""Bytes and values that a peer chooses meet typed errors alone: the wire's check, the socket's frames and payloads."""

import socket
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmem.errors import BoundaryViolation, FedmemError, VersionMismatch
from fedmem.federation import fixedpoint, wire
from fedmem.federation import socket_protocol as protocol
from fedmem.federation.connection import HEAD, MAGIC, VERSION, BadFrame, Connection, PeerGone
from fedmem.federation.wire import Fields

SHAPES = {"b": (3,), "w": (4, 3)}
REPLY, REQUEST = wire.anchor_reply(SHAPES, clip=1.0), wire.anchor_request(SHAPES)
LIMITS = {protocol.TEXT: 64, protocol.END: 0, protocol.REFUSED: 1}
RUNS = [pytest.param(300, id="300"), pytest.param(20_000, id="20000", marks=pytest.mark.slow)]

KINDS = st.sampled_from(["<i4", "<u2", "<f4", "<i8", "|b1", "<U3", "|O"])
THINGS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=70), st.binary(max_size=9), st.just([])
)
ARRAYS = st.one_of(
    THINGS,
    st.tuples(st.lists(st.integers(0, 5), max_size=4), KINDS).map(lambda drawn: np.zeros(tuple(drawn[0]), drawn[1])),
    st.integers(-(2**31), 2**31 - 1).map(lambda value: np.full((3,), value, np.int32)),
    st.integers(0, 2**16 - 1).map(lambda value: np.full((4, 3), value, np.uint16)),
)
NAMES = st.one_of(st.sampled_from([*REQUEST.scalars, *SHAPES]), st.text(max_size=3), st.integers(), st.none())


@st.composite
def fields(draw: st.DrawFn) -> Fields:
    """Fields with the right keys more often than not, and any values."""
    honest = {"b": np.zeros(3, np.int32), "w": np.zeros((4, 3), np.int32)}
    arrays: dict[Any, Any] = {**honest, **draw(st.dictionaries(st.sampled_from([*SHAPES]), ARRAYS))}
    scalars: dict[Any, Any] = draw(
        st.one_of(st.just({}), st.fixed_dictionaries(dict.fromkeys(REQUEST.scalars, THINGS)))
    )
    if draw(st.integers(0, 9)) == 0:
        arrays |= draw(st.dictionaries(NAMES, ARRAYS, max_size=2))
        scalars |= draw(st.dictionaries(NAMES, THINGS, max_size=2))
    return Fields(arrays, scalars)


@pytest.mark.parametrize("examples", RUNS)
@pytest.mark.parametrize("schema", [REPLY, REQUEST], ids=["reply", "request"])
def test_the_check_of_the_wire_raises_its_own_errors_alone(schema: wire.Schema, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, database=None, derandomize=True)
    @given(fields())
    def judge(drawn: Fields) -> None:
        try:
            wire.check(drawn, schema)
        except (BoundaryViolation, VersionMismatch):
            return
        assert {name: array.shape for name, array in drawn.arrays.items()} == SHAPES
        assert all(abs(int(cell)) <= fixedpoint.cells(1.0) for a in drawn.arrays.values() for cell in a.ravel())

    judge()


@pytest.mark.parametrize("examples", RUNS)
def test_payloads_of_any_bytes_are_read_whole_or_refused(examples: int) -> None:
    size = protocol.update_bytes(REPLY)

    @settings(max_examples=examples, deadline=None, database=None, derandomize=True)
    @given(st.one_of(st.binary(max_size=2 * size), st.binary(min_size=size, max_size=size)))
    def read(payload: bytes) -> None:
        if len(payload) == size:
            drawn, number = protocol.decode(payload, REPLY)
            assert (drawn.nbytes, 0 <= number < 2**32) == (REPLY.nbytes, True)
        else:
            with pytest.raises(BadFrame):
                protocol.decode(payload, REPLY)
        assert isinstance(protocol.refusal(payload), FedmemError)
        if len(payload) != protocol.ROUND_BYTES:
            with pytest.raises(BadFrame):
                protocol.decode_round(payload)

    read()


HEADS = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda magic, version, kind, length, rest: HEAD.pack(magic, version, kind, length) + rest,
        st.sampled_from([MAGIC, b"fmvq", b"\0\0\0\0"]),
        st.sampled_from([VERSION, 0, 2, 65535]),
        st.sampled_from([*LIMITS, 0, 1, 65535]),
        st.sampled_from([0, 1, 3, 64, 65, 2**32, 2**63, 2**64 - 1]),
        st.binary(max_size=70),
    ),
)


@pytest.mark.parametrize("examples", RUNS)
def test_frames_of_any_bytes_give_a_frame_an_end_or_a_typed_error(examples: int) -> None:
    @settings(max_examples=examples, deadline=None, database=None, derandomize=True)
    @given(HEADS)
    def receive(data: bytes) -> None:
        ours, theirs = socket.socketpair()
        connection = Connection(ours, patience=5.0)
        try:
            theirs.sendall(data)
            theirs.close()
            frame = connection.receive(LIMITS)
            assert frame is None or len(frame[1]) <= LIMITS[frame[0]]
            assert (frame is None) == (not data)
        except (PeerGone, BadFrame, VersionMismatch):
            pass
        finally:
            connection.close()
            theirs.close()

    receive()


def test_a_length_beyond_its_limit_allocates_nothing() -> None:
    ours, theirs = socket.socketpair()
    connection = Connection(ours)
    theirs.sendall(HEAD.pack(MAGIC, VERSION, protocol.TEXT, 2**62) + struct.pack("<Q", 0))
    with pytest.raises(BadFrame):
        connection.receive(LIMITS)
    connection.close()
    theirs.close()
