"""Restoring: the vault comes back whole, without what was erased since, and never by halves."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest

from fedmem import erasure, paths
from fedmem.erasure.residue import scan
from fedmem.errors import (
    KeystoreError,
    NothingMatched,
    PartialErasure,
    Refused,
    StorageError,
    VerificationFailed,
)
from fedmem.privacy.ledger import subject_epsilon
from fedmem.sdk.keys import later_erasures
from fedmem.vault.backup import backup, recovery, recovery_kit, restoring
from fedmem.vault.backup.restoring import LaterErasures
from fedmem.vault.crypto import rekey
from fedmem.vault.crypto.device_key import fingerprint
from fedmem.vault.crypto.key_table import RolledBack
from fedmem.vault.store.egress_log import EgressLog
from fedmem.vault.vault import ALL, Vault
from tests.vault.test_backup import SPEND, held, learn, lose, place, tree, vault
from tests.vault.test_backup_registry import erase

__all__ = ["place", "vault"]  # fixtures


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
        told = restoring.restore(
            tmp_path / "backup", vaults.base / "v", later_erasures=LaterErasures(generation=0), **options
        )
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
                restoring.restore(tmp_path / "stick", vaults.base / "v", later_erasures=LaterErasures(1), **options)
        told = later_erasures(tmp_path / "stick", tmp_path / "receipts")
        assert (told.generation, len(told.receipts)) == (2, 2)
        result = restoring.restore(tmp_path / "stick", vaults.base / "v", later_erasures=told, **options)
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
        told = later_erasures(tmp_path / "stick", vault.root / "receipts")
        assert list(told.receipts) == [f"{one.id}.dsse.json" for one in (second, first)]

    def test_receipts_that_break_are_refused(self, vaults, vault: Vault, kit, tmp_path: Path) -> None:
        backup.create(vault, tmp_path / "backup")
        (tmp_path / "backup").rename(tmp_path / "stick")
        (tmp_path / "receipts").mkdir()
        with pytest.raises(NothingMatched):
            later_erasures(tmp_path / "stick", tmp_path / "receipts")
        erase(vault, vaults.TOPIC)
        second = erase(vault, "other").receipt_path
        shutil.copy(second, tmp_path / "receipts")
        with pytest.raises(VerificationFailed):
            later_erasures(tmp_path / "stick", tmp_path / "receipts")
        (tmp_path / "receipts" / second.name).write_text("{}")
        with pytest.raises(VerificationFailed):
            later_erasures(tmp_path / "stick", tmp_path / "receipts")


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


class TestCrash:
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
