"""The key table: rotation is all or nothing, and no key opens an older copy."""

import contextlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedmem.errors import KeystoreError, StorageError, VerificationFailed
from fedmem.storage import two_slot_register as notes
from fedmem.vault.crypto import hpke
from fedmem.vault.crypto.container import ContainerCorrupt
from fedmem.vault.crypto.key_table import KeyTable, RolledBack, noted_numbers
from fedmem.vault.crypto.keystore import KeyfileKeys
from fedmem.vault.crypto.sealed_table import backup_name, epoch_name

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
    assert table.numbers_on_disk() == (2, 1, 3)
    assert sorted(path.name for path in (tmp_path / "slots").iterdir()) == ["epoch-2", "table.note"]
    (tmp_path / "table.fmk").write_bytes(old)
    with pytest.raises(KeystoreError):
        KeyTable.open(faults, tmp_path / "table.fmk", slots, "v1")


@pytest.mark.parametrize("at", range(16))
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
        table.numbers_on_disk()


class TestRollback:
    def test_an_older_table_put_back_is_noticed(self, table: KeyTable, tmp_path: Path, slots, faults) -> None:
        old = (tmp_path / "table.fmk").read_bytes()
        table.rewrite(add={"ef" * 16: b"e" * 32})
        (tmp_path / "table.fmk").write_bytes(old)
        with pytest.raises(RolledBack, match="put back") as caught:
            KeyTable.open(faults, tmp_path / "table.fmk", slots, "v1")
        assert caught.value.exit_code == 6
        with pytest.raises(RolledBack):
            table.load()

    @pytest.mark.parametrize("rotate", [False, True])
    @pytest.mark.parametrize("at", range(16))
    def test_the_note_is_at_most_one_behind_and_never_ahead(
        self, table: KeyTable, tmp_path: Path, slots, faults, rotate: bool, at: int
    ) -> None:
        faults.arm("cut", at)
        with contextlib.suppress(faults.PowerCut):
            table.rewrite(add={"ef" * 16: b"e" * 32}, rotate=rotate)
        faults.arm("cut", None)
        serial = table.numbers_on_disk()[2]
        assert serial - 1 <= noted_numbers(slots)[2] <= serial
        assert reopened(table, tmp_path, slots, faults).serial == noted_numbers(slots)[2] == serial

    def test_many_cuts_before_the_note_let_it_fall_no_further_behind(
        self, table: KeyTable, tmp_path: Path, slots, faults
    ) -> None:
        for i in range(5):
            faults.watch = lambda operation, path: faults.arm("cut", 0 if path.name == "table.note" else None)
            with pytest.raises(faults.PowerCut):
                table.rewrite(add={f"{i:032x}": b"e" * 32})
            faults.watch = lambda operation, path: None
            assert table.numbers_on_disk()[2] - noted_numbers(slots)[2] == 1
            table = reopened(table, tmp_path, slots, faults)

    def test_a_keystore_that_refuses_the_note_stops_the_write_after_the_next(
        self, table: KeyTable, tmp_path: Path, slots, faults, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise KeystoreError("locked")

        with monkeypatch.context() as patch:
            patch.setattr(slots, "note", refuse)
            table.rewrite(add={"01" * 16: b"1" * 32})  # it is written: that its note waits is no failure
            before = (tmp_path / "table.fmk").read_bytes()
            with pytest.raises(KeystoreError):
                table.rewrite(add={"02" * 16: b"2" * 32})
            assert (tmp_path / "table.fmk").read_bytes() == before
            assert set(table.keys) == {STAYS, GOES, "01" * 16}
        table.rewrite(add={"02" * 16: b"2" * 32})
        assert noted_numbers(slots)[2] == table.serial

    def test_a_torn_note_counts_as_the_one_before(self, table: KeyTable, tmp_path: Path, slots, faults) -> None:
        table.rewrite()
        path = tmp_path / "slots" / "table.note"
        whole = path.read_bytes()
        at, half = notes.following(whole, b"x" * 24)
        before = noted_numbers(slots)
        for length in range(0, len(half), 5):
            path.write_bytes(whole[:at] + half[:length] + whole[at + length :])
            assert noted_numbers(slots) in (before, (before[0], before[1], before[2] - 1))
            reopened(table, tmp_path, slots, faults)

    def test_a_keystore_without_a_note_is_one_of_an_older_fedmem(
        self, table: KeyTable, tmp_path: Path, slots, faults
    ) -> None:
        (tmp_path / "slots" / "table.note").unlink()
        assert reopened(table, tmp_path, slots, faults).serial == noted_numbers(slots)[2]


def test_an_ordinary_write_costs_one_more_sync(table: KeyTable, faults) -> None:
    faults.arm("cut", None)
    table.rewrite(add={"01" * 16: b"1" * 32})
    assert faults.seen == ["write", "fsync", "rename", "fsync-folder", "overwrite", "fsync"]


def test_an_erasure_destroys_the_key_of_the_backups_and_leaves_the_kits_out(table: KeyTable, slots) -> None:
    key = slots.create(backup_name(0))
    public = hpke.public_of(X25519PrivateKey.generate())
    table.rewrite(facts={**table.facts, "backup": key.hex(), "kits": {"k": public}})
    table.rewrite(rotate=True)
    assert slots.exists(backup_name(0))
    table.rewrite(without={GOES}, rotate=True, erasure=True)
    assert not slots.exists(backup_name(0))
    assert table.facts == {"subject": "alice"}
