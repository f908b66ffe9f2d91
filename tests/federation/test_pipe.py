"""Frames: what is well formed comes through whole; everything else is a typed error, in time, and costs no memory."""

import os
import resource
import threading
import time
from collections.abc import Iterator

import pytest

from fedmem.errors import BoundaryViolation, VersionMismatch
from fedmem.federation.pipe import HEAD, MAGIC, VERSION, BadFrame, PeerGone, Pipe

LIMITS = {1: 8, 2: 0}


@pytest.fixture
def ends() -> Iterator[tuple[Pipe, int, int]]:
    """A pipe, and its peer's raw descriptors: (pipe, to write what it reads, to read what it writes)."""
    theirs, ours = os.pipe(), os.pipe()
    pipe = Pipe(theirs[0], ours[1], patience=0.3)
    yield pipe, theirs[1], ours[0]
    pipe.close()
    for handle in (theirs[1], ours[0]):
        try:
            os.close(handle)
        except OSError:
            continue  # the test closed it


def frame(kind: int = 1, payload: bytes = b"abc", *, magic: bytes = MAGIC, version: int = VERSION, length: int = -1):
    return HEAD.pack(magic, version, kind, len(payload) if length < 0 else length) + payload


def test_frames_come_through_in_order(ends) -> None:
    pipe, write, read = ends
    os.write(write, frame(1, b"abc") + frame(2, b"") + frame(1, b""))
    assert [pipe.receive(LIMITS) for _ in range(3)] == [(1, b"abc"), (2, b""), (1, b"")]
    pipe.send(7, b"a", bytearray(b"bc"))
    assert os.read(read, 100) == frame(7)


@pytest.mark.parametrize("size", [0, 1, 65_536, 3 << 20])
def test_a_frame_larger_than_the_pipe_comes_through(ends, size: int) -> None:
    pipe, write, read = ends
    peer = Pipe(read, write)
    data = os.urandom(size)
    sender = threading.Thread(target=peer.send, args=(1, data))
    sender.start()
    assert pipe.receive({1: size}) == (1, data)
    sender.join()


def test_an_end_between_frames_is_none(ends) -> None:
    pipe, write, _ = ends
    os.write(write, frame(1))
    os.close(write)
    assert pipe.receive(LIMITS) == (1, b"abc")
    assert pipe.receive(LIMITS) is None
    assert pipe.left()


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
    pipe, write, _ = ends
    os.write(write, data)
    os.close(write)
    with pytest.raises(error) as caught:
        pipe.receive(LIMITS)
    assert type(caught.value) is error


def test_the_exit_codes_are_those_of_the_contract() -> None:
    assert (BadFrame.exit_code, PeerGone.exit_code) == (4, 10)
    assert issubclass(BadFrame, BoundaryViolation)


def test_a_length_that_is_announced_is_not_allocated(ends) -> None:
    pipe, write, _ = ends
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    os.write(write, frame(length=2**33))
    with pytest.raises(BadFrame):
        pipe.receive({1: 2**33 - 1})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000


def test_silence_in_a_frame_ends_in_time(ends) -> None:
    pipe, write, _ = ends
    os.write(write, frame()[:-1])
    start = time.monotonic()
    with pytest.raises(PeerGone):
        pipe.receive(LIMITS)
    assert time.monotonic() - start < 2


def test_a_peer_that_does_not_read_is_left_in_time(ends) -> None:
    pipe, _, _ = ends
    with pytest.raises(PeerGone):
        pipe.send(1, bytes(10 << 20))


def test_a_peer_that_closed_is_gone(ends) -> None:
    pipe, _, read = ends
    os.close(read)
    with pytest.raises(PeerGone):
        pipe.send(1, b"abc")
