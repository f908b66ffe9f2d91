"""The register of kits and backups: an erasure removes those in reach, and names the others."""

from pathlib import Path

import pytest

from fedmem import erasure
from fedmem.errors import (
    Refused,
)
from fedmem.vault.backup import backup, backup_registry, restoring
from fedmem.vault.vault import Vault
from tests.vault.test_backup import held, lose, place, vault

__all__ = ["place", "vault"]  # fixtures


def erase(vault: Vault, topic: str) -> erasure.Outcome:
    planned = erasure.plan(vault, erasure.Scope.topic(topic))
    return erasure.execute(vault, planned, planned.digest)


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
