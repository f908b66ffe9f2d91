"""What an erasure does not reach: said in the plan before it, and in the receipt after it."""

from pathlib import Path

from fedmem import erasure
from fedmem.erasure import receipt
from fedmem.sdk.views import Erase
from fedmem.vault.backup import backup, recovery
from fedmem.vault.vault import Vault
from tests.erasure.test_copies import vault

__all__ = ["vault"]  # fixtures


def test_plan_and_receipt_name_the_copies_that_go(vaults, vault: Vault, tmp_path: Path) -> None:
    manifest = backup.create(vault, tmp_path / "stick")
    kit, _ = recovery.create(vault, tmp_path / "kit")
    lost, _ = recovery.create(vault, tmp_path / "lost")
    (tmp_path / "lost").unlink()
    planned = Erase(vault).plan(topic=vaults.TOPIC)
    assert (planned.counts["backup"], planned.counts["kit"], planned.items["copies"]) == (1, 1, 2)
    assert any(lost in line for line in planned.not_covered)
    done = planned.execute()
    statement = receipt.verify(done.receipt.read_bytes(), (vault.root / "device.pub").read_bytes())["predicate"]
    assert {"id": manifest.id, "kind": "backup"} in statement["erased"]
    assert {"id": kit, "kind": "kit"} in statement["erased"]
    assert any(lost in line for line in statement["not_covered"])
    assert any(f"further copies of recovery kit {kit}" in line for line in statement["not_covered"])
    assert not (tmp_path / "stick").exists()
    assert not (tmp_path / "kit").exists()
    assert erasure.status(vault)[0].counts["backup"] == 1
