"""Backups: what is restored is what was there, without what was erased since, and never by halves."""

import json
import os
import shutil
from pathlib import Path

import pytest

from fedmem import paths
from fedmem.erasure.residue import scan
from fedmem.errors import (
    Busy,
    Refused,
    StorageError,
    UsageError,
    VerificationFailed,
    VersionMismatch,
)
from fedmem.vault.backup import backup, backup_registry, restoring
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


def lose(vault: Vault, *, keys: bool = False) -> None:
    """The disk with the vault is gone; with `keys`, the one with its slots too."""
    vault.close()
    shutil.rmtree(vault.root)
    if keys:
        shutil.rmtree(paths.slots_dir() / vault.id)


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


class TestWhole:
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


class TestBad:
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
