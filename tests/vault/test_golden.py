"""Data directories of earlier versions: each still opens, holds what it held, and can be written to and erased from."""

import importlib.util
import json
import tarfile
from pathlib import Path

import pytest

from fedmem import erasure
from fedmem.vault.vault import Vault

HERE = Path(__file__).parent
FILES = sorted((HERE / "golden").glob("*.tar.gz"))
spec = importlib.util.spec_from_file_location("golden", HERE / "golden.py")
golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(golden)


@pytest.fixture(params=FILES, ids=lambda path: path.name.split(".")[0])
def found(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict]:
    """The folder of the vault, unpacked, and what it should hold."""
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))
    told = json.loads(Path(str(request.param).replace(".tar.gz", ".json")).read_text("utf-8"))
    return tmp_path / "home" / "vaults" / "v", told


def test_there_is_one() -> None:
    assert FILES


@pytest.mark.parametrize("write", [True, False])
def test_it_holds_what_it_held(found: tuple[Path, dict], write: bool) -> None:
    root, told = found
    with Vault.open(root, subject="alice", write=write) as vault:
        assert json.loads(json.dumps(golden.contents(vault))) == told


def test_its_receipts_verify_and_its_vault_goes_on(found: tuple[Path, dict]) -> None:
    root, told = found
    with Vault.open(root, subject="alice") as vault:
        planned = erasure.plan(vault, erasure.Scope.topic("garden"))
        erasure.execute(vault, planned, planned.digest)
        assert {record.topic for record in vault.records("boat")} == {"boat"}
        assert vault.records("garden") == []
        ids = [one.id for one in erasure.status(vault)]
    assert len(ids) == len(told["erasures"]) + 1
    files = [(root / "receipts" / f"{one}.dsse.json").read_bytes() for one in ids]
    assert len(erasure.receipt.verify_chain(files, (root / "device.pub").read_bytes())) == len(ids)
