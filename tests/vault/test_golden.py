"""Data directories of earlier versions: each still opens, holds what it held, and can be written to and erased from."""

import importlib.util
import json
import math
import tarfile
from pathlib import Path

import pytest
from sqlalchemy import Connection

from fedmem import erasure
from fedmem.device.account import account_of
from fedmem.errors import StorageError, VersionMismatch
from fedmem.policy.policy import FederationLimits
from fedmem.vault.backup import backup, recovery, recovery_kit, restoring
from fedmem.vault.store import database
from fedmem.vault.store.database import FIRST_REVISION, SCHEMA, Database
from fedmem.vault.store.egress_log import EgressLog
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
        assert json.loads(json.dumps(golden.contents(vault))) == {name: told[name] for name in golden.contents(vault)}
        assert [line.entry.number for line in EgressLog(vault.core).entries()] == told.get("egress", [])


def test_its_egress_ledger_counts_in_the_device_account(found: tuple[Path, dict]) -> None:
    root, told = found
    with Vault.open(root, subject="alice", write=False) as vault:
        # Its lines name neither plan nor spend, so their rounds cannot be bounded.
        expected = math.inf if told.get("egress") else 0.0
        assert account_of(EgressLog(vault.core), FederationLimits()).epsilon() == expected


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


@pytest.fixture
def with_copies(found: tuple[Path, dict]) -> tuple[Path, dict]:
    """A home that also holds a backup and a recovery kit."""
    if "code" not in found[1]:
        pytest.skip("this archive holds no backup and no kit")
    return found


def test_its_backup_is_restored_with_its_ledger(with_copies: tuple[Path, dict], tmp_path: Path) -> None:
    root, told = with_copies
    backup.verify(root.parents[1] / "backup")
    restored = restoring.restore(root.parents[1] / "backup", tmp_path / "again", subject="alice")
    assert not restored.unbounded
    with Vault.open(tmp_path / "again", subject="alice") as vault:
        assert json.loads(json.dumps(golden.contents(vault))) == {name: told[name] for name in golden.contents(vault)}


def test_its_kit_brings_the_keys_back(with_copies: tuple[Path, dict]) -> None:
    root, told = with_copies
    for slot in (root.parents[1] / "slots" / told["id"]).iterdir():
        slot.unlink()
    kit = (root.parents[1] / "kit").read_bytes()
    assert recovery_kit.open_kit(kit, told["code"]).vault == told["id"]
    recovery.restore(root, kit, told["code"], subject="alice", keystore="keyfile")
    with Vault.open(root, subject="alice") as vault:
        assert json.loads(json.dumps(golden.contents(vault))) == {name: told[name] for name in golden.contents(vault)}


def test_a_migration_that_breaks_off_leaves_the_earlier_version_whole(
    with_copies: tuple[Path, dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, told = with_copies
    whole = database.MIGRATIONS[-1]

    def half(connection: Connection) -> None:
        whole(connection)
        raise StorageError("The disk refused.")

    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS[:-1], half))
        with pytest.raises(StorageError):
            Vault.open(root, subject="alice")
    looked = Database(root / "vault.db", write=False)
    assert (looked.version(), looked.revision()) == (SCHEMA - 1, FIRST_REVISION)
    looked.close()
    with Vault.open(root, subject="alice") as vault:
        assert vault.ledger.verify() == told["head"]
        assert vault.core.database.version() == SCHEMA


def test_a_newer_schema_is_refused(with_copies: tuple[Path, dict], monkeypatch: pytest.MonkeyPatch) -> None:
    """So does this version's vault look to the version before it: a downgrade is refused, and nothing is changed."""
    root, _ = with_copies
    Vault.open(root, subject="alice").close()
    before = (root / "vault.db").read_bytes()
    monkeypatch.setattr("fedmem.vault.store.database.SCHEMA", SCHEMA - 1)
    for write in (False, True):
        with pytest.raises(VersionMismatch):
            Vault.open(root, subject="alice", write=write)
    assert (root / "vault.db").read_bytes() == before
