"""The key table: rotation is all or nothing, and no key opens an older copy."""

from pathlib import Path

import pytest

from fedmem.errors import KeystoreError, StorageError, VerificationFailed
from fedmem.vault.container import ContainerCorrupt
from fedmem.vault.ids import new_id
from fedmem.vault.keys import KeyfileKeys
from fedmem.vault.keytable import KeyTable, decode, encode, epoch_name

STAYS, GOES = "ab" * 16, "cd" * 16


@pytest.fixture
def slots(tmp_path: Path, faults) -> KeyfileKeys:
    return KeyfileKeys(faults, tmp_path / "slots")


@pytest.fixture
def table(tmp_path: Path, faults, slots: KeyfileKeys) -> KeyTable:
    made = KeyTable.create(faults, tmp_path / "table.fmk", slots, "v1", {"subject": "alice"})
    made.rewrite(add={STAYS: b"s" * 32, GOES: b"g" * 32})
    return made


def reopened(table: KeyTable, tmp_path: Path, slots: KeyfileKeys, faults) -> KeyTable:
    faults.arm("cut", None)
    found = KeyTable.open(faults, tmp_path / "table.fmk", slots, "v1")
    found.settle()
    return found


def test_rows_and_facts_come_back(table: KeyTable, tmp_path: Path, slots: KeyfileKeys, faults) -> None:
    found = reopened(table, tmp_path, slots, faults)
    assert found.keys == {STAYS: b"s" * 32, GOES: b"g" * 32}
    assert found.facts == {"subject": "alice"}


def test_rotation_destroys_the_way_to_old_copies(table: KeyTable, tmp_path: Path, slots: KeyfileKeys, faults) -> None:
    old = (tmp_path / "table.fmk").read_bytes()
    table.rewrite(without={GOES}, rotate=True, erasure=True)
    assert table.peek() == (2, 1, 3)
    assert sorted(path.name for path in (tmp_path / "slots").iterdir()) == ["epoch-2"]
    (tmp_path / "table.fmk").write_bytes(old)
    with pytest.raises(KeystoreError):
        KeyTable.open(faults, tmp_path / "table.fmk", slots, "v1")


@pytest.mark.parametrize("at", range(12))
def test_rotation_cut_anywhere_is_old_or_new(
    table: KeyTable, tmp_path: Path, slots: KeyfileKeys, faults, at: int
) -> None:
    faults.arm("cut", at)
    try:
        table.rewrite(without={GOES}, rotate=True, erasure=True)
        acknowledged = True
    except faults.PowerCut:
        acknowledged = False
    found = reopened(table, tmp_path, slots, faults)
    assert set(found.keys) == {STAYS} if found.generation else {STAYS, GOES}
    assert found.generation == 1 or not acknowledged
    # Exactly one epoch key is left, and it is the one of the table that is there.
    assert [path.name for path in (tmp_path / "slots").glob("epoch-*")] == [epoch_name(found.epoch)]
    slots.create("device")
    assert not list((tmp_path / "slots").glob("*.tmp"))


@pytest.mark.parametrize("at", range(6))
def test_full_disk_keeps_memory_and_file_equal(
    table: KeyTable, tmp_path: Path, slots: KeyfileKeys, faults, at: int
) -> None:
    faults.arm("full", at)
    try:
        table.rewrite(without={GOES}, rotate=True)
    except StorageError:
        found = reopened(table, tmp_path, slots, faults)
        assert (found.keys, found.epoch) == (table.keys, table.epoch)
    table.rewrite(without={GOES}, rotate=True)
    assert set(reopened(table, tmp_path, slots, faults).keys) == {STAYS}


def test_settle_judges_by_the_file_not_by_memory(table: KeyTable, tmp_path: Path, slots: KeyfileKeys, faults) -> None:
    stale = KeyTable.open(faults, tmp_path / "table.fmk", slots, "v1")
    table.rewrite(rotate=True)
    stale.settle()
    assert slots.exists("epoch-2")


def test_another_vaults_table_does_not_open(table: KeyTable, tmp_path: Path, slots: KeyfileKeys, faults) -> None:
    with pytest.raises(VerificationFailed):
        KeyTable.open(faults, tmp_path / "table.fmk", slots, "v2")


def test_a_changed_generation_does_not_open(table: KeyTable, tmp_path: Path, slots: KeyfileKeys, faults) -> None:
    path = tmp_path / "table.fmk"
    path.write_bytes(path.read_bytes().replace(b'"generation":0', b'"generation":7'))
    with pytest.raises(VerificationFailed):
        KeyTable.open(faults, path, slots, "v1")


def test_header_without_numbers_is_damage(table: KeyTable, tmp_path: Path) -> None:
    path = tmp_path / "table.fmk"
    path.write_bytes(path.read_bytes().replace(b'"keytable"', b'"bytetable"'[:10]))
    with pytest.raises(ContainerCorrupt):
        table.peek()


def test_payload_codec_refuses_damage() -> None:
    payload = encode({"a": 1}, {new_id(): b"k" * 32})
    for damaged in (payload[:-1], payload + b"x", b"", b"\xff\xff\xff\xff"):
        with pytest.raises(VerificationFailed):
            decode(damaged)
