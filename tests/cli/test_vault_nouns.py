"""block, erase, receipt and privacy on a real vault, and bad input at each door."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fedmem.cli.main import main
from fedmem.sdk.places import vault_root
from fedmem.storage.files import Files
from fedmem.vault.vault import ALL, BlockInfo, Vault

Call = Callable[..., tuple[Any, dict[str, Any]]]
ANA = ("--subject", "ana")


def bytes_under(root: Path) -> dict[str, bytes]:
    """Every file of a vault but the lock, SQLite's shared memory and an empty log, which readers leave."""
    files = [path for path in root.rglob("*") if path.is_file() and path.suffix not in (".db-shm", "")]
    found = {str(path.relative_to(root)): path.read_bytes() for path in files if path.name != "vault.db-shm"}
    return {name: data for name, data in found.items() if data or name != "vault.db-wal"}


def test_list_and_show(fedmem: Call, block: BlockInfo) -> None:
    result, envelope = fedmem("block", "list", *ANA)
    assert (result.exit_code, envelope["schema"]) == (0, "fedmem.block.list/1")
    (one,) = envelope["data"]["blocks"]
    assert (one["id"], one["topic"], one["version"], one["width"]) == (block.id, "health", 1, 4)
    for name in ("health", block.id):
        result, envelope = fedmem("block", "show", name, *ANA)
        assert envelope["data"] == one


def test_tables_for_people(block: BlockInfo) -> None:
    for words in (["block", "list"], ["block", "show", "health"], ["privacy", "budget"]):
        result = CliRunner().invoke(main, [*words, *ANA])
        assert result.exit_code == 0
        assert block.id in result.stdout
        assert result.stderr == ""


def test_budget(fedmem: Call, block: BlockInfo) -> None:
    result, envelope = fedmem("privacy", "budget", *ANA)
    assert (result.exit_code, envelope["schema"]) == (0, "fedmem.privacy.budget/1")
    data = envelope["data"]
    assert 0 < data["epsilon"] < 8
    assert [(run["block"], run["topic"]) for run in data["runs"]] == [(block.id, "health")]


def test_delete_and_check_the_receipt_elsewhere(fedmem: Call, block: BlockInfo, tmp_path: Path) -> None:
    result, envelope = fedmem("block", "delete", "health", *ANA, "--yes")
    data = envelope["data"]
    assert (result.exit_code, envelope["schema"]) == (0, "fedmem.block.delete/1")
    assert (data["state"], data["verified"]) == ("completed", True)
    assert data["counts"]["record"] == 2
    assert data["not_covered"]
    shutil.copy(data["receipt"], tmp_path / "r.json")
    shutil.copy(vault_root("ana") / "device.pub", tmp_path / "key.pem")
    shutil.rmtree(vault_root("ana"))
    result, envelope = fedmem("receipt", "verify", str(tmp_path / "r.json"), "--key", str(tmp_path / "key.pem"))
    assert (result.exit_code, envelope["data"]["verified"]) == (0, True)
    assert envelope["data"]["statement"]["predicate"]["erasure"] == data["id"]
    assert (
        CliRunner().invoke(main, ["receipt", "verify", f"{tmp_path}/r.json", "--key", f"{tmp_path}/key.pem"]).exit_code
        == 0
    )


def test_delete_keeps_the_rest_and_the_ledger(fedmem: Call, block: BlockInfo) -> None:
    before = fedmem("privacy", "budget", *ANA)[1]["data"]["epsilon"]
    fedmem("block", "delete", block.id, *ANA, "--yes")
    assert fedmem("block", "list", *ANA)[1]["data"]["blocks"] == []
    budget = fedmem("privacy", "budget", *ANA)[1]["data"]
    assert budget["epsilon"] == before
    assert budget["runs"][0]["topic"] is None
    with Vault.open(vault_root("ana"), subject="ana") as vault:
        assert [record.topic for record in vault.records(ALL)] == ["finance"]
    (erasure,) = fedmem("erase", "status", *ANA)[1]["data"]["erasures"]
    assert erasure["state"] == "completed"


def test_delete_for_people(block: BlockInfo) -> None:
    result = CliRunner().invoke(main, ["block", "delete", "health", *ANA, "--yes"])
    assert result.exit_code == 0
    assert "dsse.json" in result.stdout
    assert "not covered" in result.stdout


def test_dry_run_changes_nothing(fedmem: Call, block: BlockInfo) -> None:
    before = bytes_under(vault_root("ana"))
    result, envelope = fedmem("block", "delete", "health", *ANA, "--dry-run")
    assert (result.exit_code, envelope["data"]["state"]) == (0, "planned")
    assert envelope["data"]["counts"]["block"] == 1
    assert bytes_under(vault_root("ana")) == before


def test_off_a_terminal_and_without_yes_it_refuses(fedmem: Call, block: BlockInfo) -> None:
    result, envelope = fedmem("block", "delete", "health", *ANA)
    assert (result.exit_code, envelope["data"]["error"]) == (4, "Refused")
    assert len(fedmem("block", "list", *ANA)[1]["data"]["blocks"]) == 1


@pytest.mark.parametrize("words", [("block", "delete", "no-such", "--yes"), ("block", "show", "no-such")])
def test_a_block_that_does_not_exist(fedmem: Call, block: BlockInfo, words: tuple[str, ...]) -> None:
    before = bytes_under(vault_root("ana"))
    result, envelope = fedmem(*words, *ANA)
    assert (result.exit_code, envelope["data"]["error"]) == (3, "NothingMatched")
    assert bytes_under(vault_root("ana")).keys() == before.keys()
    assert len(fedmem("block", "list", *ANA)[1]["data"]["blocks"]) == 1


def test_no_vault_and_another_subjects_vault(fedmem: Call, block: BlockInfo) -> None:
    assert fedmem("block", "list", "--subject", "ben")[0].exit_code == 3
    assert fedmem("block", "list", "--subject", "ben", "--vault", str(vault_root("ana")))[0].exit_code == 4
    assert CliRunner().invoke(main, ["block", "list"]).exit_code == 2


def test_passphrase(fedmem: Call, tmp_path: Path) -> None:
    Vault.create(vault_root("ana"), subject="ana", keystore="passphrase", ask=lambda: "tulip").close()
    file = tmp_path / "secret"
    file.touch(mode=0o600)
    file.write_text("tulip\n")
    assert fedmem("block", "list", *ANA, "--passphrase-file", str(file))[0].exit_code == 0
    with file.open("rb") as stream:
        assert fedmem("block", "list", *ANA, "--passphrase-fd", str(stream.fileno()))[0].exit_code == 0
    before = bytes_under(vault_root("ana"))
    file.write_text("rose\n")
    for words in (("block", "list"), ("block", "delete", "health", "--yes")):
        result, envelope = fedmem(*words, *ANA, "--passphrase-file", str(file))
        assert (result.exit_code, envelope["data"]["error"]) == (8, "KeystoreError")
        assert "rose" not in result.output
    assert bytes_under(vault_root("ana")) == before
    assert fedmem("block", "list", *ANA)[0].exit_code == 8  # nothing given and no terminal


def test_a_second_process_on_the_vault(block: BlockInfo) -> None:
    words = ["block", "delete", "health", *ANA, "--yes", "--json"]
    with Vault.open(vault_root("ana"), subject="ana") as vault:
        result = subprocess.run([sys.executable, "-m", "fedmem.cli.main", *words], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert vault.blocks() == []  # it let go of what the other program erased, and goes on


def test_a_truncated_container(fedmem: Call, block: BlockInfo) -> None:
    file = vault_root("ana") / "table.fmk"
    file.write_bytes(file.read_bytes()[:-20])
    result, envelope = fedmem("block", "list", *ANA)
    assert (result.exit_code, envelope["data"]["error"]) == (6, "TruncatedContainer")


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every replacement of a vault file fails as it does on a full disk."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(os, "write", fail)


def test_a_full_disk(fedmem: Call, block: BlockInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        full_disk(patch)
        result, envelope = fedmem("block", "delete", "health", *ANA, "--yes")
    assert (result.exit_code, envelope["data"]["error"]) == (11, "StorageError")
    assert len(fedmem("block", "list", *ANA)[1]["data"]["blocks"]) == 1
    assert fedmem("block", "delete", "health", *ANA, "--yes")[0].exit_code == 0


def test_partial_has_its_code_keeps_its_envelope_and_resumes(
    fedmem: Call, block: BlockInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedmem.errors import StorageError

    def fail(*_: object) -> None:
        raise StorageError("The disk refused.")

    with monkeypatch.context() as patch:
        patch.setattr(Files, "unlink", fail)
        result, envelope = fedmem("block", "delete", "health", *ANA, "--yes")
    assert (result.exit_code, envelope["schema"]) == (5, "fedmem.block.delete/1")
    assert (envelope["data"]["state"], envelope["data"]["verified"]) == ("partial", False)
    assert fedmem("erase", "status", *ANA)[1]["data"]["erasures"][0]["state"] == "partial"
    result, envelope = fedmem("erase", "resume", *ANA)
    assert (result.exit_code, envelope["data"]["erasures"][0]["state"]) == (0, "completed")
    assert fedmem("erase", "resume", *ANA)[1]["data"]["erasures"] == []


def test_an_erasure_that_does_not_verify(fedmem: Call, block: BlockInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedmem import erasure

    monkeypatch.setattr(erasure, "verify", lambda *_: erasure.Verification("x", {"somewhere": ["something"]}))
    result, envelope = fedmem("block", "delete", "health", *ANA, "--yes")
    assert (result.exit_code, envelope["data"]["state"]) == (6, "unverified")


@pytest.mark.parametrize("change", [b"", b"{}", b"not json"])
def test_receipts_that_do_not_verify(fedmem: Call, block: BlockInfo, tmp_path: Path, change: bytes) -> None:
    file = tmp_path / "r.json"
    file.write_bytes(change)
    result, _ = fedmem("receipt", "verify", str(file), "--key", str(vault_root("ana") / "device.pub"))
    assert result.exit_code == 6


def test_a_run_s_vault_by_its_name(fedmem: Call, home: Path) -> None:
    root = home / "runs" / "quickstart-0001" / "vaults" / "device-0"
    root.parent.mkdir(parents=True)
    Vault.create(root, subject="device-0", simulated=True).close()
    words = ("block", "list", "--subject", "device-0", "--vault", "quickstart-0001/device-0")
    assert fedmem(*words)[0].exit_code == 0
