"""The log of the key table: entries come back in order, and only the last one may be incomplete."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmem.errors import VerificationFailed
from fedmem.vault.crypto import table_log
from fedmem.vault.crypto.table_log import LogPosition

EPOCH_KEY, VAULT, TABLE = b"k" * 32, "ab" * 16, b"the bytes of a table"
PAYLOADS = [b"first", b"", b"third" * 100]


def written(
    payloads: list[bytes], table: bytes = TABLE, key: bytes = EPOCH_KEY, vault: str = VAULT
) -> tuple[bytes, list[LogPosition]]:
    """The file with these entries, and the place after each."""
    positions, data = [table_log.start(table, 7)], b""
    for payload in payloads:
        entry, position = table_log.seal_entry(table_log.entry_key(key, positions[-1]), vault, positions[-1], payload)
        data += entry
        positions.append(position)
    return data, positions


def read(data: bytes, position: LogPosition, *, key: bytes = EPOCH_KEY, vault: str = VAULT) -> table_log.LogEntries:
    return table_log.read_entries(table_log.entry_key(key, position), vault, position, data)


def test_entries_come_back_from_every_place() -> None:
    data, positions = written(PAYLOADS)
    for number, position in enumerate(positions):
        entries = read(data[position.offset :], position)
        assert (entries.payloads, entries.position, entries.is_torn) == (PAYLOADS[number:], positions[-1], False)
    assert [position.serial for position in positions] == [7, 8, 9, 10]


@given(size=st.integers(0, 1200))
def test_a_cut_file_gives_the_whole_entries_before_the_cut(size: int) -> None:
    data, positions = written(PAYLOADS)
    entries = read(data[:size], positions[0])
    whole = [position for position in positions if position.offset <= size]
    assert entries.position == whole[-1]
    assert entries.payloads == PAYLOADS[: len(whole) - 1]
    assert entries.is_torn == (table_log.HEADER_BYTES < size < len(data) and size not in [p.offset for p in positions])


@given(at=st.integers(table_log.HEADER_BYTES, 10_000), bit=st.integers(0, 7))
def test_a_changed_bit_is_never_read_as_another_entry(at: int, bit: int) -> None:
    data, positions = written(PAYLOADS)
    changed = bytearray(data)
    changed[at % len(data) if at % len(data) >= table_log.HEADER_BYTES else table_log.HEADER_BYTES] ^= 1 << bit
    try:
        entries = read(bytes(changed), positions[0])
    except VerificationFailed:
        return
    assert entries.is_torn
    assert entries.payloads == PAYLOADS[: len(entries.payloads)]
    assert len(entries.payloads) < len(PAYLOADS)


def test_entries_in_another_order_do_not_open() -> None:
    data, (start, first, second, _) = written([b"a", b"b", b"c"])
    one, two = data[table_log.HEADER_BYTES : first.offset], data[first.offset : second.offset]
    with pytest.raises(VerificationFailed):
        read(data[: table_log.HEADER_BYTES] + two + one + data[second.offset :], start)
    with pytest.raises(VerificationFailed):  # removed from the middle
        read(data[: first.offset] + data[second.offset :] + two, start)


@pytest.mark.parametrize("other", [{"key": b"x" * 32}, {"vault": "cd" * 16}, {"table": b"another table"}])
def test_entries_of_another_key_vault_or_table_are_not_read(other: dict) -> None:
    data, _ = written([b"only"], **other)
    entries = read(data, table_log.start(TABLE, 7))
    assert entries.payloads == []
    assert entries.is_torn == ("table" not in other)


def test_an_entry_that_is_written_again_has_other_bytes() -> None:
    assert written([b"same"])[0] != written([b"same"])[0]
