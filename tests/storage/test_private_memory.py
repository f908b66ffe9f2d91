"""Private buffers: overwritten when they are dropped, on demand, and in a forked child."""

import os

import numpy as np
import pytest

from fedmem.storage.private_memory import PrivateBuffer, PrivateMemory, moved, overwrite_bytes, overwrite_values


def test_a_buffer_holds_its_content_until_it_is_overwritten() -> None:
    buffer = PrivateBuffer(b"secret")
    view = memoryview(buffer)
    assert buffer == b"secret"
    buffer.overwrite()
    buffer.overwrite()
    assert bytes(view) == bytes(6)
    assert repr(buffer) == str(buffer) == "PrivateBuffer(6 bytes)"


@pytest.mark.parametrize("size", [0, 1, 2, 100_000])
def test_any_size(size: int) -> None:
    buffer = PrivateBuffer(b"x" * size)
    buffer.overwrite()
    assert buffer == bytes(size)


def test_a_dropped_buffer_is_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    overwritten: list[bytes] = []
    original = PrivateBuffer.overwrite
    monkeypatch.setattr(
        PrivateBuffer, "overwrite", lambda buffer: (overwritten.append(bytes(buffer)), original(buffer))
    )
    buffer = PrivateBuffer(b"secret")
    array = np.frombuffer(buffer, np.uint8)
    del buffer
    assert b"secret" not in overwritten  # the array still refers to it
    del array
    assert b"secret" in overwritten


def test_clear_overwrites_what_is_in_use_and_keeps_nothing_alive() -> None:
    memory, dropped = PrivateMemory(), PrivateBuffer(b"one")
    memory.keep(dropped)
    del dropped
    buffer = memory.keep(PrivateBuffer(b"two"))
    assert buffer == b"two"
    memory.clear()
    memory.clear()
    assert buffer == bytes(3)


def test_two_equal_buffers_are_two_items() -> None:
    memory = PrivateMemory()
    first, second = memory.keep(PrivateBuffer(b"same")), memory.keep(PrivateBuffer(b"same"))
    memory.clear()
    assert first == second == bytes(4)


def test_a_forked_child_overwrites_its_copies_only() -> None:
    memory = PrivateMemory()
    buffer = memory.keep(PrivateBuffer(b"secret"))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, bytes(buffer))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        assert answer.read() == bytes(6)
    os.waitpid(child, 0)
    assert buffer == b"secret"


def test_bytes_are_moved() -> None:
    data = os.urandom(32)
    copy = bytearray(data)
    buffer = moved(data)
    assert buffer == copy
    assert data == bytes(32)


@pytest.mark.parametrize("data", [b"", b"a"])
def test_bytes_that_python_shares_are_left_alone(data: bytes) -> None:
    copy = bytearray(data)
    overwrite_bytes(data)
    assert data == copy


def test_values_that_other_code_refers_to_are_left_alone() -> None:
    """`tests/sdk/test_let_go.py` looks into the memory for those that are overwritten."""
    used = os.urandom(32)
    copy, values = bytes(bytearray(used)), {"used": used, "other": os.urandom(32)}
    overwrite_values(values)
    assert values == {}
    assert used == copy
