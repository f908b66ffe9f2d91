"""Backups: what is restored is what was there, without what was erased since, and never by halves."""

import contextlib
import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from fedmem import erasure, paths
from fedmem.erasure.residue import scan
from fedmem.errors import (
    Busy,
    KeystoreError,
    NothingMatched,
    PartialErasure,
    Refused,
    StorageError,
    UsageError,
    VerificationFailed,
    VersionMismatch,
)
from fedmem.privacy.ledger import subject_epsilon
from fedmem.sdk.keys import newest
from fedmem.vault.backup import backup, backup_registry, recovery, recovery_kit, restoring
from fedmem.vault.backup.restoring import LaterErasures
from fedmem.vault.crypto import rekey
from fedmem.vault.crypto.device_key import fingerprint
from fedmem.vault.crypto.key_table import RolledBack
from fedmem.vault.store.egress_log import EgressLog
from fedmem.vault.vault import ALL, Vault

SPEND = {"mechanism": "poisson-gaussian/1", "sampling_rate": 0.1, "noise_multiplier": 2.0, "steps": 10}


@pytest.fixture
def vault(vaults) -> Vault:
    """Three records and a block of one topic, two records of another."""
    made = vaults.create()
    made.add_records(vaults.records(3))
    made.add_records(vaults.records(2, topic="other"))
    learn(made, vaults.TOPIC)
    return made


@pytest.fixture
def place(vault: Vault, tmp_path: Path) -> Path:
    """A backup of it."""
    backup.create(vault, tmp_path / "backup")
    return tmp_path / "backup"


def learn(vault: Vault, topic: str) -> str:
    ids = [record.id for record in vault.records(topic)]
    run = vault.begin_run(topic, "release-1", {"steps": 1}, "digest", ids, SPEND)
    return vault.finish_run(run, topic, "release-1", b"rows-canary-51d2" * 2000, 2, 4, 8).id


def held(vault: Vault) -> tuple[list[str], list[str], list[str]]:
    """What the ordinary path shows."""
    blocks = [block.id for block in vault.blocks() if vault.block_rows(block.id)]
    return [record.id for record in vault.records(ALL)], blocks, [event.kind for event in vault.ledger.events()]


def erase(vault: Vault, topic: str) -> erasure.Outcome:
    planned = erasure.plan(vault, erasure.Scope.topic(topic))
    return erasure.execute(vault, planned, planned.digest)


def lose(vault: Vault, *, keys: bool = False) -> None:
    """The disk with the vault is gone; with `keys`, the one with its slots too."""
    vault.close()
    shutil.rmtree(vault.root)
    if keys:
        shutil.rmtree(paths.slots_dir() / vault.id)


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


class TestWhole:
    def test_a_lost_vault_comes_back(self, vaults, vault: Vault, place: Path) -> None:
        before = held(vault)
        lose(vault)
        told = restoring.restore(place, vaults.base / "v", subject="alice")
        assert (told.vault, told.unbounded, told.erased) == (vault.id, False, 0)
        again = vaults.open()
        assert held(again) == before
        assert subject_epsilon(again.ledger.events()) < 10
        learn(again, "other")
        assert erase(again, vaults.TOPIC).state == "completed"

    def test_into_an_empty_folder_and_with_a_passphrase(self, vaults, tmp_path: Path) -> None:
        vault = vaults.create(keystore="passphrase", ask=lambda: "tulip")
        vault.add_records(vaults.records(2))
        backup.create(vault, tmp_path / "backup")
        before = held(vault)
        rekey.change_passphrase(vault.core, lambda: "rose")
        lose(vault)
        (vaults.base / "v").mkdir()
        with pytest.raises(KeystoreError):
            restoring.restore(tmp_path / "backup", vaults.base / "v", subject="alice", ask=lambda: "tulip")
        restoring.restore(tmp_path / "backup", vaults.base / "v", subject="alice", ask=lambda: "rose")
        assert held(vaults.open(ask=lambda: "rose")) == before

    def test_a_backup_survives_learning(self, vaults, vault: Vault, place: Path) -> None:
        before = held(vault)
        learn(vault, "other")
        assert backup.verify(place).vault == vault.id
        lose(vault)
        told = restoring.restore(place, vaults.base / "v", subject="alice")
        again = vaults.open()
        assert held(again)[:2] == before[:2]
        # What was spent after it is not in its ledger: the true figure is unknown, so it is infinite (I6).
        assert told.unbounded
        assert told.missing > 0
        assert subject_epsilon(again.ledger.events()) == float("inf")

    def test_a_run_that_was_open_ends_failed_and_stays_charged(self, vaults, vault: Vault, tmp_path: Path) -> None:
        run = vault.begin_run("other", "release-1", {}, "d", [], SPEND)
        backup.create(vault, tmp_path / "backup")
        needles = {"run key": run.key, **{f"key {i}": key for i, key in vault.core.table.keys.items()}}
        assert scan(tmp_path / "backup", needles) == []
        lose(vault)
        restoring.restore(tmp_path / "backup", vaults.base / "v", subject="alice")
        events = vaults.open().ledger.events()
        assert [event.kind for event in events][-2:] == ["spend", "run_failed"]
        assert events[-1].payload["run"] == run.id

    def test_other_copies_of_the_vault_open_no_more(self, vaults, vault: Vault, place: Path) -> None:
        vault.close()
        restoring.restore(place, vaults.base / "second", subject="alice")
        with pytest.raises((RolledBack, KeystoreError)):
            vaults.open()
        assert len(vaults.open("second").records(ALL)) == 5

    def test_nothing_private_is_in_the_clear(self, vaults, vault: Vault, place: Path) -> None:
        names = {"text": vaults.CANARY, "topic": vaults.TOPIC, "rows": "rows-canary-51d2", "subject": "alice"}
        assert scan(place, {name: word.encode() for name, word in names.items()}) == []
        assert all(path.stat().st_mode & 0o077 == 0 for path in [place, *place.rglob("*")])
        assert str(place).encode() not in b"".join(tree(vault.root).values())

    def test_two_backups_of_one_generation_both_open(self, vaults, vault: Vault, place: Path, tmp_path: Path) -> None:
        vault.add_records(vaults.records(1))
        backup.create(vault, tmp_path / "second")
        assert backup.verify(place).serial < backup.verify(tmp_path / "second").serial
        lose(vault)
        restoring.restore(tmp_path / "second", vaults.base / "v", subject="alice")
        again = vaults.open()
        assert len(again.records(ALL)) == 6
        assert {copy.place for copy in backup_registry.registered_copies(again.core)} == {place, tmp_path / "second"}
        assert all(backup_registry.is_valid(again.core, copy) for copy in backup_registry.registered_copies(again.core))
        assert backup.verify(place)


class TestErasure:
    def test_a_backup_in_reach_is_removed(self, vault: Vault, place: Path, vaults) -> None:
        assert erase(vault, vaults.TOPIC).state == "completed"
        assert not place.exists()
        assert backup_registry.registered_copies(vault.core) == []

    def test_one_out_of_reach_is_named_and_its_key_is_gone(
        self, vaults, vault: Vault, place: Path, tmp_path: Path
    ) -> None:
        (copy,) = backup_registry.registered_copies(vault.core)
        place.rename(tmp_path / "usb stick")
        outcome = erase(vault, vaults.TOPIC)
        assert backup_registry.out_of_reach(vault.core) == [copy.id]
        assert erasure.verify(vault, outcome.id).is_clean
        lose(vault)
        with pytest.raises(Refused, match="older than an erasure") as caught:
            restoring.restore(tmp_path / "usb stick", vaults.base / "v", subject="alice")
        assert caught.value.exit_code == 4
        with pytest.raises(Refused):
            backup.verify(tmp_path / "usb stick")
        assert not (vaults.base / "v").exists()

    def test_one_that_comes_back_into_reach_does_not_verify_and_is_removed(
        self, vaults, vault, place, tmp_path
    ) -> None:
        place.rename(tmp_path / "usb stick")
        outcome = erase(vault, vaults.TOPIC)
        (tmp_path / "usb stick").rename(place)
        assert not erasure.verify(vault, outcome.id).is_clean
        with vault.core.writing():
            assert backup_registry.retire(vault.core) == []
        assert erasure.verify(vault, outcome.id).is_clean

    def test_a_new_backup_is_not_retired(self, vaults, vault: Vault, place: Path, tmp_path: Path) -> None:
        erase(vault, vaults.TOPIC)
        backup.create(vault, tmp_path / "new")
        with vault.core.writing():
            assert backup_registry.retire(vault.core) == []
        before = held(vault)
        lose(vault)
        restoring.restore(tmp_path / "new", vaults.base / "v", subject="alice")
        assert held(vaults.open()) == before

    def test_another_folder_at_its_place_is_left_alone(self, vaults, vault: Vault, place: Path) -> None:
        (place / "manifest.json").write_text('{"id": "of another"}')
        erase(vault, vaults.TOPIC)
        assert place.exists()
        assert len(backup_registry.out_of_reach(vault.core)) == 1


class TestKit:
    @pytest.fixture
    def kit(self, vault: Vault, tmp_path: Path) -> recovery_kit.Kit:
        code = recovery.create(vault, tmp_path / "kit")[1]
        return recovery_kit.open_kit((tmp_path / "kit").read_bytes(), code)

    @pytest.mark.parametrize("backend", ["keyfile", "passphrase"])
    def test_vault_and_keystore_both_lost(self, vaults, vault: Vault, kit, tmp_path: Path, backend: str) -> None:
        backup.create(vault, tmp_path / "backup")
        before, key = held(vault), (vault.root / "device.pub").read_bytes()
        lose(vault, keys=True)
        options = {"subject": "alice", "kit": kit, "backend": backend, "ask": lambda: "tulip"}
        with pytest.raises(Refused, match="--receipts"):
            restoring.restore(tmp_path / "backup", vaults.base / "v", **options)
        told = restoring.restore(tmp_path / "backup", vaults.base / "v", newest=LaterErasures(generation=0), **options)
        assert told.missing is None
        assert told.unbounded  # no keystore is left to say that nothing was spent since
        again = vaults.open(**({"ask": lambda: "tulip"} if backend == "passphrase" else {}))
        assert not EgressLog(again.core).complete()  # nor that nothing left the device since
        assert held(again)[:2] == before[:2]
        assert (again.root / "device.pub").read_bytes() != key
        assert again.core.table.facts["device_keys"] == [fingerprint(key)]
        assert "moving" not in again.core.table.facts
        again.add_records(vaults.records(1))
        backup.create(again, tmp_path / "next")
        assert erase(again, vaults.TOPIC).state == "completed"

    @pytest.mark.parametrize("keys", [True, False])
    def test_what_was_erased_since_is_erased_again(self, vaults, vault: Vault, kit, tmp_path: Path, keys: bool) -> None:
        backup.create(vault, tmp_path / "backup")
        (tmp_path / "backup").rename(tmp_path / "stick")
        gone = frozenset(vault.ids_of(vaults.TOPIC))
        salts = dict.fromkeys(gone, b"")
        erased = [erase(vault, vaults.TOPIC).receipt_path, erase(vault, "other").receipt_path]
        shutil.copytree(vault.root / "receipts", tmp_path / "receipts")
        public = (vault.root / "device.pub").read_bytes()
        lose(vault, keys=keys)
        options = {"subject": "alice", "kit": kit}
        if not keys:  # the notes of the keystore tell of two erasures
            with pytest.raises(Refused, match="erased after"):
                restoring.restore(tmp_path / "stick", vaults.base / "v", **options)
            with pytest.raises(Refused, match="erased after"):
                restoring.restore(tmp_path / "stick", vaults.base / "v", newest=LaterErasures(1), **options)
        told = newest(tmp_path / "stick", tmp_path / "receipts")
        assert (told.generation, len(told.receipts)) == (2, 2)
        result = restoring.restore(tmp_path / "stick", vaults.base / "v", newest=told, **options)
        assert result.erased >= len(salts) - 1
        again = vaults.open()
        assert held(again)[:2] == ([], [])
        assert again.generation == 2
        assert not gone & again.core.table.keys.keys()
        assert [one.state for one in erasure.status(again)] == ["completed", "completed"]
        # The chain of receipts goes on from the newest one.
        again.add_records(vaults.records(1))
        third = erase(again, vaults.TOPIC).receipt_path
        files = [again.root / "receipts" / path.name for path in [*erased, third]]
        keys = public, (again.root / "device.pub").read_bytes()
        assert len(erasure.receipt.verify_chain([path.read_bytes() for path in files], *keys)) == 3

    def test_an_erasure_that_ended_late_follows_what_it_names(self, vaults, vault: Vault, tmp_path: Path) -> None:
        backup.create(vault, tmp_path / "backup")
        (tmp_path / "backup").rename(tmp_path / "stick")
        with contextlib.closing(sqlite3.connect(vault.root / "vault.db")) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM erasures").fetchall()  # the log stays in use
            with pytest.raises(PartialErasure):
                erase(vault, vaults.TOPIC)
        second = erase(vault, "other")
        (first,) = erasure.resume(vault)
        told = newest(tmp_path / "stick", vault.root / "receipts")
        assert list(told.receipts) == [f"{one.id}.dsse.json" for one in (second, first)]

    def test_receipts_that_break_are_refused(self, vaults, vault: Vault, kit, tmp_path: Path) -> None:
        backup.create(vault, tmp_path / "backup")
        (tmp_path / "backup").rename(tmp_path / "stick")
        (tmp_path / "receipts").mkdir()
        with pytest.raises(NothingMatched):
            newest(tmp_path / "stick", tmp_path / "receipts")
        erase(vault, vaults.TOPIC)
        second = erase(vault, "other").receipt_path
        shutil.copy(second, tmp_path / "receipts")
        with pytest.raises(VerificationFailed):
            newest(tmp_path / "stick", tmp_path / "receipts")
        (tmp_path / "receipts" / second.name).write_text("{}")
        with pytest.raises(VerificationFailed):
            newest(tmp_path / "stick", tmp_path / "receipts")


class TestBad:
    @pytest.mark.parametrize("name", ["vault.db", "vault.json", "device.pub", "table.fmk", "manifest.json", "blocks"])
    @pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
    def test_damage_is_typed_and_changes_nothing(self, vaults, vault, place: Path, name: str, how: str) -> None:
        file = next((place / name).iterdir()) if name == "blocks" else place / name
        lose(vault)
        before = tree(paths.slots_dir())
        whole = file.read_bytes()
        if how == "gone":
            file.unlink()
        else:
            file.write_bytes(whole[:-9] if how == "cut" else whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        for action in (
            lambda: backup.verify(place),
            lambda: restoring.restore(place, vaults.base / "v", subject="alice"),
        ):
            with pytest.raises((VerificationFailed, NothingMatched)):
                action()
        assert not (vaults.base / "v").exists()
        assert tree(paths.slots_dir()) == before
        file.write_bytes(whole)
        restoring.restore(place, vaults.base / "v", subject="alice")

    def test_files_of_two_backups_do_not_mix(self, vaults, vault: Vault, place: Path, tmp_path: Path) -> None:
        vault.add_records(vaults.records(1))
        backup.create(vault, tmp_path / "second")
        shutil.copy(tmp_path / "second" / "vault.db", place)
        manifest = json.loads((place / "manifest.json").read_bytes())
        manifest["files"]["vault.db"] = json.loads((tmp_path / "second/manifest.json").read_bytes())["files"][
            "vault.db"
        ]
        (place / "manifest.json").write_text(json.dumps(manifest))
        assert backup.read(place)  # every digest holds
        with pytest.raises(VerificationFailed, match="belong together"):
            backup.verify(place)

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ({"schema": "fedmem.backup/2"}, VersionMismatch),
            ({"files": {"../../etc/passwd": "0"}}, VerificationFailed),
            ({"files": {"/etc/passwd": "0"}}, VerificationFailed),
            ({"files": []}, VerificationFailed),
            ({"generation": "0"}, VerificationFailed),
            ({"more": 1}, VerificationFailed),
        ],
    )
    def test_manifests(self, place: Path, change, error: type[Exception]) -> None:
        known = json.loads((place / "manifest.json").read_bytes())
        files = change.get("files")
        if isinstance(files, dict):
            change = {"files": {**known["files"], **files}}
        (place / "manifest.json").write_text(json.dumps({**known, **change}))
        with pytest.raises(error):
            backup.read(place)

    def test_lost_key_another_subject_and_a_taken_place(
        self, vaults, vault: Vault, place: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(Refused, match="not empty"):
            restoring.restore(place, vault.root, subject="alice")
        lose(vault)
        with pytest.raises(Refused, match="another subject"):
            restoring.restore(place, vaults.base / "v", subject="bob")
        with pytest.raises(NothingMatched):
            restoring.restore(place, tmp_path / "absent" / "v", subject="alice")
        with pytest.raises(NothingMatched):
            restoring.restore(tmp_path / "absent", vaults.base / "v", subject="alice")
        (paths.slots_dir() / vault.id).rename(tmp_path / "slots")
        with pytest.raises(KeystoreError):
            restoring.restore(place, vaults.base / "v", subject="alice")
        assert not (vaults.base / "v").exists()

    def test_places_of_backups(self, vault: Vault, place: Path, tmp_path: Path) -> None:
        for taken in (place, vault.root / "backup", vault.root / "blocks" / "b", paths.slots_dir() / "b"):
            with pytest.raises(Refused):
                backup.create(vault, taken)
        with pytest.raises(UsageError):
            backup.create(vault, tmp_path / "absent" / "b")
        assert len(backup_registry.registered_copies(vault.core)) == 1

    def test_a_reader_and_a_second_process(self, vaults, vault: Vault, tmp_path: Path) -> None:
        with vault.core.turn(), pytest.raises(Busy):
            vaults.open(timeout=0)
        with pytest.raises(Refused, match="reading only"):
            backup.create(vaults.open(write=False), tmp_path / "backup")
        assert not (tmp_path / "backup").exists()


class TestCrash:
    @pytest.mark.parametrize("at", range(0, 40, 2))
    @pytest.mark.parametrize("kind", ["cut", "full"])
    def test_making_one_is_whole_or_absent(self, vaults, vault, faults, tmp_path: Path, kind: str, at: int) -> None:
        before = held(vault)
        faults.arm(kind, at)
        try:
            backup.create(vault, tmp_path / "backup")
            made = True
        except (StorageError, faults.PowerCut):
            made = False
        faults.arm(kind, None)
        vault = vaults.reopen(vault)
        assert held(vault) == before
        assert (tmp_path / "backup").exists() or not made
        if (tmp_path / "backup").exists():
            assert backup.verify(tmp_path / "backup")
        backup.create(vault, tmp_path / "after")
        assert not list(tmp_path.glob(".*.tmp"))
        assert len(backup_registry.registered_copies(vault.core)) == 1 + (tmp_path / "backup").exists()

    @pytest.mark.parametrize("at", range(0, 44, 2))
    @pytest.mark.parametrize("kind", ["cut", "full"])
    def test_restoring_is_whole_or_absent(self, vaults, vault, place: Path, faults, kind: str, at: int) -> None:
        before = held(vault)
        lose(vault)
        faults.arm(kind, at)
        try:
            restoring.restore(place, vaults.base / "v", subject="alice", files=faults)
            done = True
        except (StorageError, faults.PowerCut):
            done = False
        faults.arm(kind, None)
        there = (vaults.base / "v").exists()
        assert there or not done
        if not there:
            restoring.restore(place, vaults.base / "v", subject="alice", files=faults)
        assert held(vaults.open()) == before
        slots = {path.name for path in (paths.slots_dir() / vault.id).iterdir()}
        assert len([name for name in slots if name.startswith("epoch-")]) == 1

    def test_a_full_disk_while_the_database_is_copied(self, vaults, vault, tmp_path: Path, monkeypatch) -> None:
        before = held(vault)
        if os.geteuid() != 0:
            (tmp_path / "closed").mkdir(mode=0o500)
            with pytest.raises(StorageError):
                backup.create(vault, tmp_path / "closed" / "backup")
        with monkeypatch.context() as patch:
            patch.setattr(type(vault.core.database), "copy_to", lambda *_: (_ for _ in ()).throw(StorageError("full")))
            with pytest.raises(StorageError):
                backup.create(vault, tmp_path / "backup")
        assert backup_registry.registered_copies(vault.core) == []
        assert held(vaults.reopen(vault)) == before
