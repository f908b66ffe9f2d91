"""Frames: what is well formed comes through whole; everything else is a typed error, in time, and costs no memory."""

import os
import resource
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from fedmem.errors import BoundaryViolation, VersionMismatch
from fedmem.federation.connection import HEAD, MAGIC, VERSION, BadFrame, Connection, PeerGone

LIMITS = {1: 8, 2: 0}


@pytest.fixture
def ends() -> Iterator[tuple[Connection, socket.socket]]:
    """A connection, and its peer's raw socket."""
    ours, theirs = socket.socketpair()
    connection = Connection(ours, patience=0.3)
    yield connection, theirs
    connection.close()
    theirs.close()


def frame(kind: int = 1, payload: bytes = b"abc", *, magic: bytes = MAGIC, version: int = VERSION, length: int = -1):
    return HEAD.pack(magic, version, kind, len(payload) if length < 0 else length) + payload


def test_frames_come_through_in_order(ends) -> None:
    connection, peer = ends
    peer.sendall(frame(1, b"abc") + frame(2, b"") + frame(1, b""))
    assert [connection.receive(LIMITS) for _ in range(3)] == [(1, b"abc"), (2, b""), (1, b"")]
    connection.send(7, b"a", bytearray(b"bc"))
    assert peer.recv(100) == frame(7)


@pytest.mark.parametrize("size", [0, 1, 65_536, 3 << 20])
def test_a_frame_larger_than_the_buffer_of_the_kernel_comes_through(ends, size: int) -> None:
    connection, peer = ends[0], Connection(ends[1])
    data = os.urandom(size)
    sender = threading.Thread(target=peer.send, args=(1, data))
    sender.start()
    assert connection.receive({1: size}) == (1, data)
    sender.join()


def test_an_end_between_frames_is_none(ends) -> None:
    connection, peer = ends
    peer.sendall(frame(1))
    peer.close()
    assert connection.receive(LIMITS) == (1, b"abc")
    assert connection.receive(LIMITS) is None
    assert connection.is_closed()


BAD = {
    "another magic": (frame(magic=b"HTTP"), BadFrame),
    "a pickle": (b"\x80\x04\x95" + bytes(40), BadFrame),
    "an older version": (frame(version=0), VersionMismatch),
    "a newer version": (frame(version=VERSION + 1), VersionMismatch),
    "an unknown kind": (frame(9), BadFrame),
    "a byte too long": (frame(1, bytes(9)), BadFrame),
    "a payload where none belongs": (frame(2, b"x"), BadFrame),
    "10 GB": (frame(length=10**10), BadFrame),
    "the largest length": (frame(length=2**64 - 1), BadFrame),
    "an end in the head": (frame()[:10], PeerGone),
    "an end in the payload": (frame(length=5), PeerGone),
}


@pytest.mark.parametrize(("data", "error"), BAD.values(), ids=BAD.keys())
def test_bad_frames_are_typed(ends, data: bytes, error: type[Exception]) -> None:
    connection, peer = ends
    peer.sendall(data)
    peer.close()
    with pytest.raises(error) as caught:
        connection.receive(LIMITS)
    assert type(caught.value) is error


def test_the_exit_codes_are_those_of_the_contract() -> None:
    assert (BadFrame.exit_code, PeerGone.exit_code) == (4, 10)
    assert issubclass(BadFrame, BoundaryViolation)


def test_a_length_that_is_announced_is_not_allocated(ends) -> None:
    connection, peer = ends
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peer.sendall(frame(length=2**33))
    with pytest.raises(BadFrame):
        connection.receive({1: 2**33 - 1})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000


def test_silence_in_a_frame_ends_in_time(ends) -> None:
    connection, peer = ends
    peer.sendall(frame()[:-1])
    start = time.monotonic()
    with pytest.raises(PeerGone):
        connection.receive(LIMITS)
    assert time.monotonic() - start < 2


def test_a_peer_that_does_not_read_is_left_in_time(ends) -> None:
    connection, _ = ends
    with pytest.raises(PeerGone):
        connection.send(1, bytes(10 << 20))


def test_a_peer_that_closed_is_gone(ends) -> None:
    connection, peer = ends
    peer.close()
    with pytest.raises(PeerGone):
        connection.send(1, b"abc")
