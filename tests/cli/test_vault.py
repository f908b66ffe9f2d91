"""`vault remove` and `receipt items`: refused while anything would be lost, and complete after a crash."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from fedmem import paths
from fedmem.cli.main import main
from fedmem.sdk.places import vault_root
from fedmem.vault.vault import BlockInfo, NewRecord, Vault

Call = Callable[..., tuple[Any, dict[str, Any]]]
ANA = ("--subject", "ana")


@pytest.fixture
def erased(fedmem: Call, block: BlockInfo) -> str:
    """The id of an erasure of everything of ana."""
    digest = fedmem("erase", "plan", *ANA, "--whole-subject")[1]["data"]["plan"]
    result = CliRunner().invoke(main, ["erase", "run", *ANA, "--whole-subject", "--digest", digest, "--yes", "--json"])
    assert "fedmem vault remove" in result.stderr
    return str(fedmem("erase", "status", *ANA)[1]["data"]["erasures"][0]["id"])


def remove(fedmem: Call, place: Path) -> tuple[Any, dict[str, Any]]:
    return fedmem("vault", "remove", *ANA, "--evidence", str(place), "--yes")


def test_it_removes_folder_keys_and_name(fedmem: Call, erased: str, tmp_path: Path) -> None:
    result, envelope = remove(fedmem, tmp_path / "evidence")
    assert (result.exit_code, envelope["schema"]) == (0, "fedmem.vault.remove/1")
    assert envelope["data"]["evidence"] == sorted(["device.pub", f"{erased}.dsse.json", f"{erased}.list"])
    assert list(paths.vaults_dir().iterdir()) == list(paths.slots_dir().iterdir()) == []
    evidence = tmp_path / "evidence"
    words = ("receipt", "verify", str(evidence / f"{erased}.dsse.json"), "--key", str(evidence / "device.pub"))
    assert fedmem(*words)[0].exit_code == 0
    assert remove(fedmem, tmp_path / "more")[0].exit_code == 3


def test_a_vault_that_holds_anything_stays(fedmem: Call, block: BlockInfo, tmp_path: Path) -> None:
    assert remove(fedmem, tmp_path / "evidence")[0].exit_code == 4
    with Vault.open(vault_root("ana"), subject="ana") as vault:
        assert len(vault.blocks()) == 1
    assert not (tmp_path / "evidence").exists()


@pytest.mark.parametrize("what", ["file", "record", "evidence", "inside", "busy", "terminal"])
def test_nothing_is_lost(fedmem: Call, erased: str, tmp_path: Path, what: str) -> None:
    root, place = vault_root("ana"), tmp_path / "evidence"
    if what == "file":
        (root / "receipts" / "mine.txt").write_text("a person's own")
    elif what == "record":
        with Vault.open(root, subject="ana") as vault:
            vault.add_records([NewRecord("new", "health", (), np.ones(2, np.float32), "r")])
    elif what == "evidence":
        place.mkdir()
        (place / "mine.txt").write_text("a person's own")
    elif what == "inside":
        place = root / "receipts" / "evidence"
    if what == "busy":
        with Vault.open(root, subject="ana"):
            assert remove(fedmem, place)[0].exit_code == 7
    elif what == "terminal":
        assert fedmem("vault", "remove", *ANA, "--evidence", str(place))[0].exit_code == 4
    else:
        assert remove(fedmem, place)[0].exit_code == 4
    Vault.open(root, subject="ana").close()


def test_items_are_written_once_and_checked(fedmem: Call, erased: str, tmp_path: Path) -> None:
    file = tmp_path / "items"
    result, envelope = fedmem("receipt", "items", erased, *ANA, "--to", str(file))
    assert (result.exit_code, envelope["schema"]) == (0, "fedmem.receipt.items/1")
    assert envelope["data"]["items"] == len(file.read_text().splitlines()) > 0
    assert fedmem("receipt", "items", erased, *ANA, "--to", str(file))[0].exit_code == 2
    assert fedmem("receipt", "items", "0" * 32, *ANA, "--to", str(tmp_path / "b"))[0].exit_code == 3
    root = vault_root("ana")
    words = ("receipt", "verify", str(root / "receipts" / f"{erased}.dsse.json"), "--key", str(root / "device.pub"))
    assert fedmem(*words, "--items", str(file))[0].exit_code == 6  # a small receipt names its items itself


def test_a_large_receipt_verifies_with_its_list(fedmem: Call, home: Path, tmp_path: Path) -> None:
    root, file = vault_root("ana"), tmp_path / "items"
    with Vault.create(root, subject="ana") as vault:
        vault.add_records([NewRecord(f"{i}", "health", (), np.ones(2, np.float32), "r") for i in range(200)])
    digest = fedmem("erase", "plan", *ANA, "--topic", "health")[1]["data"]["plan"]
    data = fedmem("erase", "run", *ANA, "--topic", "health", "--digest", digest, "--yes")[1]["data"]
    assert fedmem("receipt", "items", data["id"], *ANA, "--to", str(file))[0].exit_code == 0
    words = ("receipt", "verify", data["receipt"], "--key", str(root / "device.pub"), "--items", str(file))
    assert fedmem(*words)[1]["data"]["lists_items"] is True
    file.write_text(file.read_text().replace("record", "run", 1))
    assert fedmem(*words)[0].exit_code == 6
    assert fedmem("receipt", "show", data["receipt"])[0].exit_code == 0
    html = ("receipt", "export", data["receipt"], "--key", str(root / "device.pub"), "--html", str(tmp_path / "e.html"))
    assert fedmem(*html)[0].exit_code == 0
    assert "Merkle root" in (tmp_path / "e.html").read_text()


def test_the_plan_on_the_command_line_names_a_backup(fedmem: Call, block: BlockInfo, tmp_path: Path) -> None:
    assert fedmem("backup", "create", *ANA, "--to", str(tmp_path / "stick"))[0].exit_code == 0
    data = fedmem("erase", "plan", *ANA, "--topic", "health")[1]["data"]
    assert (data["counts"]["backup"], data["items"]["copies"]) == (1, 1)
    assert any("further copies" in line for line in data["not_covered"])
    assert "1 backup" in CliRunner().invoke(main, ["erase", "plan", *ANA, "--topic", "health"]).stdout
