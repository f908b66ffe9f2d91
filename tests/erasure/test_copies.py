"""Backups and kits in an erasure: planned, named, removed file by file, and what a killed backup left."""

import json
from pathlib import Path

import pytest

from fedmem import erasure
from fedmem.erasure import Scope, receipt
from fedmem.errors import Refused, VerificationFailed
from fedmem.vault.backup import backup, backup_registry, recovery, recovery_kit
from fedmem.vault.vault import Vault


@pytest.fixture
def vault(vaults) -> Vault:
    made = vaults.create()
    made.add_records(vaults.records(3))
    made.add_records(vaults.records(2, "other"))
    vaults.block(made)
    return made


def predicate(vault: Vault, outcome: erasure.Outcome) -> dict:
    return receipt.verify(outcome.receipt_path.read_bytes(), (vault.root / "device.pub").read_bytes())["predicate"]


def test_a_plan_of_before_a_copy_no_longer_holds(vaults, vault: Vault, tmp_path: Path) -> None:
    backup.create(vault, tmp_path / "stick")
    planned = erasure.plan(vault, Scope.topic(vaults.TOPIC))
    (tmp_path / "stick").rename(tmp_path / "away")
    with pytest.raises(Refused, match="changed since"):
        erasure.execute(vault, planned, planned.digest)
    assert len(vault.records(vaults.TOPIC)) == 3


def test_a_backup_s_folder_gives_up_its_own_files_only(vaults, vault: Vault, tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    backup.create(vault, stick)
    outside = tmp_path / "outside"
    outside.mkdir()
    foreign = {"mine.txt", "photos/1.jpg", "blocks/notes.txt", "receipts/mine.dsse.json"}
    for name in foreign:
        (stick / name).parent.mkdir(exist_ok=True)
        (stick / name).write_text("a person's own")
    planned = erasure.plan(vault, Scope.topic(vaults.TOPIC))
    assert erasure.execute(vault, planned, planned.digest).state == "completed"
    assert {str(path.relative_to(stick)) for path in stick.rglob("*") if path.is_file()} == foreign
    assert backup_registry.registered_copies(vault.core) == []


@pytest.mark.parametrize("name", ["../victim", "/victim", "photos/victim", "blocks/../victim", "blocks/.."])
def test_a_changed_manifest_reaches_no_other_file(vaults, vault: Vault, tmp_path: Path, name: str) -> None:
    stick = tmp_path / "stick"
    backup.create(vault, stick)
    name = name.replace("/victim", f"{tmp_path}/victim") if name.startswith("/") else name
    victims = [tmp_path / "victim", stick / "victim2", stick / "photos" / "victim"]
    (stick / "photos").mkdir()
    for victim in victims:
        victim.write_text("mine")
    manifest = json.loads((stick / "manifest.json").read_bytes())
    manifest["files"][name] = "0" * 64
    (stick / "manifest.json").write_text(json.dumps(manifest))
    planned = erasure.plan(vault, Scope.topic(vaults.TOPIC))
    assert erasure.execute(vault, planned, planned.digest).state == "completed"
    assert all(victim.exists() for victim in victims)


def test_a_linked_folder_in_a_backup_is_not_followed(vaults, vault: Vault, tmp_path: Path) -> None:
    stick, other = tmp_path / "stick", tmp_path / "other"
    backup.create(vault, stick)
    (stick / "blocks").rename(other)
    (stick / "blocks").symlink_to(other)
    planned = erasure.plan(vault, Scope.topic(vaults.TOPIC))
    assert erasure.execute(vault, planned, planned.digest).state == "completed"
    assert any(other.iterdir())


def killed_backup(vaults, vault: Vault, place: Path) -> Path:
    """Cut the power in the middle of a backup; return the stage folder that is left."""
    vaults.faults.arm("cut", 20)
    with pytest.raises(vaults.faults.PowerCut):
        backup.create(vault, place)
    vaults.faults.arm("cut", None)
    (stage,) = place.parent.glob(".*.tmp")
    assert any(stage.rglob("*"))
    return stage


def test_the_rest_of_a_killed_backup_goes_at_the_next_opening(vaults, vault: Vault, tmp_path: Path) -> None:
    stage = killed_backup(vaults, vault, tmp_path / "stick")
    vault.core.database.close()
    vault.core.end_turn()
    vault.core.lease.release()
    again = vaults.open()
    assert not stage.exists()
    assert backup_registry.registered_copies(again.core) == []


def test_the_rest_of_a_killed_backup_goes_with_an_erasure(vaults, vault: Vault, tmp_path: Path) -> None:
    stage = killed_backup(vaults, vault, tmp_path / "stick")
    aside = tmp_path / "aside"
    stage.rename(aside)
    vault.core.database.close()
    vault.core.end_turn()
    vault.core.lease.release()
    again = vaults.open()
    aside.rename(stage)  # a stick that was put in again
    planned = erasure.plan(again, Scope.topic(vaults.TOPIC))
    assert erasure.execute(again, planned, planned.digest).state == "completed"
    assert not stage.exists()


def test_a_kit_of_another_vault_is_left_alone(vaults, vault: Vault, tmp_path: Path) -> None:
    recovery.create(vault, tmp_path / "kit")
    other = vaults.create("w")
    code = recovery.create(other, tmp_path / "kit-of-other")[1]
    file = (tmp_path / "kit-of-other").read_bytes()
    (tmp_path / "kit").write_bytes(file)  # a person put another kit in its place
    with pytest.raises(Refused, match="another vault"):
        recovery.check(vault.root, file, code)
    planned = erasure.plan(vault, Scope.topic(vaults.TOPIC))
    outcome = erasure.execute(vault, planned, planned.digest)
    assert outcome.state == "completed"
    assert (tmp_path / "kit").read_bytes() == file
    assert "kit" not in planned.counts
    with pytest.raises(VerificationFailed):
        recovery_kit.open_kit(b"no kit", code)
