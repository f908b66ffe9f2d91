"""The reserve: an erasure completes on a full disk, on a real one where this machine may mount one."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmem import erasure
from fedmem.errors import FedmemError
from fedmem.vault.store import reserve
from fedmem.vault.vault import Vault


def test_it_is_made_adapted_and_really_allocated(vaults) -> None:
    vault = vaults.create()
    path = vault.root / "reserve"
    assert path.stat().st_size >= reserve.LEAST
    assert path.stat().st_blocks * 512 >= reserve.LEAST
    assert not any(path.read_bytes())
    path.unlink()
    vault = vaults.reopen(vault)
    assert path.stat().st_size >= reserve.size_for(vault.root)
    with path.open("ab") as file:
        file.truncate(10 * reserve.size_for(vault.root))
    vault = vaults.reopen(vault)
    assert path.stat().st_size < 4 * reserve.size_for(vault.root)
    vault.add_records(vaults.records(2000))
    assert path.stat().st_size >= reserve.size_for(vault.root) > 2 * reserve.LEAST


def test_a_simulated_vault_and_a_reader_make_none(vaults) -> None:
    assert not (vaults.create("simulated", simulated=True).root / "reserve").exists()
    vault = vaults.create()
    (vault.root / "reserve").unlink()
    vaults.open(write=False)
    assert not (vault.root / "reserve").exists()


def test_an_erasure_frees_it_and_makes_it_anew(vaults) -> None:
    vault = vaults.create()
    vault.add_records(vaults.records(3))
    present = set[bool]()
    vaults.faults.watch = lambda operation, path: (
        present.add((vault.root / "reserve").exists()) if (path.name == "table.fmk") else None
    )
    planned = erasure.plan(vault, erasure.Scope.topic(vaults.TOPIC))
    erasure.execute(vault, planned, planned.digest)
    assert present == {False}
    assert (vault.root / "reserve").stat().st_size >= reserve.LEAST


@pytest.fixture
def full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of 8 MiB with FEDMEM_HOME on it; `fill` writes it full."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine may not mount a file system")
    monkeypatch.setenv("FEDMEM_HOME", str(place / "home"))
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> None:
    with open(place / f"junk-{os.urandom(4).hex()}", "ab", buffering=0) as file:
        try:
            while file.write(bytes(4096)) == 4096:
                pass
        except OSError:
            pass
    assert shutil.disk_usage(place).free == 0


@pytest.mark.parametrize("scope", [erasure.Scope.topic("one"), erasure.Scope.subject()])
def test_a_full_disk_can_be_erased_on(vaults, full_disk: Path, scope: erasure.Scope) -> None:
    root = full_disk / "v"
    with Vault.create(root, subject="alice") as vault:
        vault.add_records(vaults.records(400, "one"))
        vault.add_records(vaults.records(100, "other"))
    for _ in range(3):  # whoever takes the space that an opening leaves
        fill(full_disk)
        with Vault.open(root, subject="alice", write=False) as reader:
            assert len(reader.records("one")) == 400
        fill(full_disk)
        with Vault.open(root, subject="alice") as vault:
            fill(full_disk)
            with pytest.raises(FedmemError):
                vault.add_records(vaults.records(400, "one"))
    fill(full_disk)
    with Vault.open(root, subject="alice") as vault:
        planned = erasure.plan(vault, scope)
        fill(full_disk)
        outcome = erasure.execute(vault, planned, planned.digest)
        assert outcome.state == "completed"
        assert erasure.receipt.verify(outcome.receipt_path.read_bytes(), (root / "device.pub").read_bytes())
        assert erasure.verify(vault, outcome.id, deep=True).is_clean
        assert (root / "reserve").stat().st_size > reserve.OPENING
    with Vault.open(root, subject="alice") as vault:
        assert len(vault.records("other")) == (0 if scope.kind == "subject" else 100)


def test_without_the_reserve_it_could_not(vaults, full_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = full_disk / "v"
    monkeypatch.setattr(reserve, "keep", lambda core: None)
    with Vault.create(root, subject="alice") as vault:
        vault.add_records(vaults.records(400, "one"))
        planned = erasure.plan(vault, erasure.Scope.topic("one"))
        fill(full_disk)
        with pytest.raises(FedmemError):
            erasure.execute(vault, planned, planned.digest)
