"""The two slots: the last value that was written whole is read, whatever a crash left of the next one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmem.storage.two_slot_register import SECTOR, first, following, latest

VALUES = st.binary(max_size=64)


def put(file: bytes, value: bytes, length: int | None = None) -> bytes:
    """The file after the first `length` bytes of a write."""
    at, slot = following(file, value)
    slot = slot[:length]
    return file[:at] + slot + file[at + len(slot) :]


@given(st.lists(VALUES, min_size=1))
def test_the_last_of_many_writes_is_read_and_the_file_keeps_its_size(values: list[bytes]) -> None:
    file = first(values[0])
    for value in values[1:]:
        file = put(file, value)
    assert latest(file) == values[-1]
    assert len(file) == 2 * SECTOR


def test_a_write_that_was_cut_anywhere_leaves_the_value_before_or_the_new_one() -> None:
    file = put(first(b"one"), b"two")
    _, slot = following(file, b"three")
    read = [latest(put(file, b"three", length)) for length in range(len(slot) + 1)]
    assert set(read) == {b"two", b"three"}
    assert read[-1] == b"three"
    assert read[0] == b"two"


def test_after_a_cut_the_next_write_takes_the_damaged_slot() -> None:
    file = put(first(b"one"), b"two")
    torn = put(file, b"three", 20)
    assert latest(put(torn, b"four")) == b"four"
    assert latest(put(torn, b"four", 30)) == b"two"


@pytest.mark.parametrize("file", [b"", b"x" * 10, bytes(2 * SECTOR), b"\xff" * 2 * SECTOR])
def test_without_a_whole_slot_there_is_no_value(file: bytes) -> None:
    assert latest(file) is None


@given(VALUES, st.integers(0, 88), st.integers(0, 7))
def test_every_changed_bit_of_a_slot_is_noticed(value: bytes, byte: int, bit: int) -> None:
    file = bytearray(first(value))
    file[byte] ^= 1 << bit
    assert latest(bytes(file)) is None
