"""backup at the command line: a lost vault comes back, a retired backup does not, and each refusal has its code."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from fedmem.cli.main import main
from fedmem.paths import slots_dir
from fedmem.sdk.places import vault_root
from fedmem.vault.vault import BlockInfo, NewRecord, Vault

Call = Callable[..., tuple[Any, dict[str, Any]]]
ANA = ("--subject", "ana")


@pytest.fixture
def place(fedmem: Call, block: BlockInfo, tmp_path: Path) -> str:
    """A backup of ana's vault."""
    result, envelope = fedmem("backup", "create", *ANA, "--to", f"{tmp_path}/backup")
    assert (result.exit_code, envelope["schema"]) == (0, "fedmem.backup.create/1")
    return f"{tmp_path}/backup"


def test_list_and_verify(fedmem: Call, place: str) -> None:
    (one,) = fedmem("backup", "list", *ANA)[1]["data"]["backups"]
    assert (one["state"], one["reachable"], one["place"]) == ("valid", True, place)
    result, envelope = fedmem("backup", "verify", place)
    assert (result.exit_code, envelope["data"]["id"], envelope["data"]["opens"]) == (0, one["id"], True)
    for words in (["list", *ANA], ["verify", place]):
        assert CliRunner().invoke(main, ["backup", *words]).exit_code == 0


def test_a_lost_vault_comes_back(fedmem: Call, place: str) -> None:
    before = fedmem("block", "list", *ANA)[1]["data"]
    assert fedmem("backup", "restore", place, *ANA, "--yes")[0].exit_code == 4  # the vault is there
    shutil.rmtree(vault_root("ana"))
    result, envelope = fedmem("backup", "restore", place, *ANA, "--dry-run")
    assert (result.exit_code, envelope["data"]["done"]) == (0, False)
    assert fedmem("backup", "restore", place, *ANA)[0].exit_code == 4  # not confirmed
    assert not vault_root("ana").exists()
    result, envelope = fedmem("backup", "restore", place, *ANA, "--yes")
    assert (result.exit_code, envelope["data"]["done"], envelope["data"]["unbounded"]) == (0, True, False)
    assert fedmem("block", "list", *ANA)[1]["data"] == before


def test_after_an_erasure(fedmem: Call, place: str, tmp_path: Path) -> None:
    Path(place).rename(tmp_path / "stick")
    assert fedmem("block", "delete", "health", *ANA, "--yes")[0].exit_code == 0
    (one,) = fedmem("backup", "list", *ANA)[1]["data"]["backups"]
    assert (one["state"], one["reachable"]) == ("retired", False)
    shutil.rmtree(vault_root("ana"))
    for words in (("verify", f"{tmp_path}/stick"), ("restore", f"{tmp_path}/stick", *ANA, "--yes")):
        result, envelope = fedmem("backup", *words)
        assert (result.exit_code, envelope["data"]["error"]) == (4, "Refused")


def test_keystore_and_vault_lost_with_the_newest_receipts(fedmem: Call, block: BlockInfo, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    fedmem("keys", "recovery", "create", *ANA, "--kit", f"{tmp_path}/kit", "--code-fd", str(writing))
    (tmp_path / "code").touch(mode=0o600)
    (tmp_path / "code").write_bytes(os.read(reading, 200))
    kit = (tmp_path / "kit").read_bytes()
    fedmem("backup", "create", *ANA, "--to", f"{tmp_path}/backup")
    (tmp_path / "backup").rename(tmp_path / "stick")
    fedmem("block", "delete", "health", *ANA, "--yes")
    shutil.copytree(vault_root("ana") / "receipts", tmp_path / "receipts")
    shutil.rmtree(vault_root("ana"))
    shutil.rmtree(slots_dir())
    (tmp_path / "kit").write_bytes(kit)
    words = ("backup", "restore", f"{tmp_path}/stick", *ANA, "--yes")
    given = ("--kit", f"{tmp_path}/kit", "--code-file", f"{tmp_path}/code", "--keystore", "keyfile")
    assert fedmem(*words)[0].exit_code == 8
    assert fedmem(*words, *given[:4])[0].exit_code == 2
    result, envelope = fedmem(*words, *given)
    assert (result.exit_code, envelope["data"]["error"]) == (4, "Refused")
    assert fedmem(*words, *given, "--receipts", f"{tmp_path}/code")[0].exit_code == 3
    result, envelope = fedmem(*words, *given, "--receipts", f"{tmp_path}/receipts")
    assert result.exit_code == 0
    assert (envelope["data"]["unbounded"], envelope["data"]["erased"] > 0) == (True, True)
    assert fedmem("block", "list", *ANA)[1]["data"]["blocks"] == []
    assert fedmem("privacy", "budget", *ANA)[1]["data"]["epsilon"] is None  # unbounded
    assert [one["state"] for one in fedmem("erase", "status", *ANA)[1]["data"]["erasures"]] == ["completed"]
    with Vault.open(vault_root("ana"), subject="ana") as vault:
        assert [record.topic for record in vault.records("finance")] == ["finance"]


def test_damage_and_a_folder_that_is_no_backup(fedmem: Call, place: str, tmp_path: Path) -> None:
    database = Path(place) / "vault.db"
    database.write_bytes(database.read_bytes()[:-1])
    assert fedmem("backup", "verify", place)[0].exit_code == 6
    assert fedmem("backup", "verify", str(tmp_path))[0].exit_code == 3
    shutil.rmtree(vault_root("ana"))
    assert fedmem("backup", "restore", place, *ANA, "--yes")[0].exit_code == 6
    assert not vault_root("ana").exists()
    both = ("--receipts", str(tmp_path), "--nothing-erased-since")
    assert fedmem("backup", "restore", place, *ANA, "--yes", *both)[0].exit_code == 2


def test_a_vault_in_use_and_a_taken_place(fedmem: Call, place: str, tmp_path: Path) -> None:
    assert fedmem("backup", "create", *ANA, "--to", place)[0].exit_code == 4
    with Vault.open(vault_root("ana"), subject="ana") as vault:
        assert fedmem("backup", "create", *ANA, "--to", f"{tmp_path}/second")[0].exit_code == 0
        vault.add_records([NewRecord("A note.", "health", (), np.ones(128, np.float32), "r")])
