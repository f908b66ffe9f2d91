"""Large erasures: a small receipt, the list of items beside it, and what a restored or repaired vault makes of both."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedmem import erasure, paths
from fedmem.erasure import Scope, receipt
from fedmem.errors import FedmemError, NothingMatched, VerificationFailed
from fedmem.sdk.keys import later_erasures
from fedmem.vault.backup import backup, recovery, recovery_kit, repair, restoring
from fedmem.vault.vault import NewRecord, Vault

MANY = 300
_spec = importlib.util.spec_from_file_location("second", Path(__file__).parents[2] / "client" / "verify_receipt.py")
assert _spec is not None
assert _spec.loader is not None
second = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(second)


def records(n: int, topic: str) -> list[NewRecord]:
    return [NewRecord(f"note {i}", topic, (1,), np.ones(4, np.float32), "r1") for i in range(n)]


@pytest.fixture
def vault(vaults) -> Vault:
    made = vaults.create()
    made.add_records(records(MANY, "large"))
    made.add_records(records(2, "small"))
    return made


def erase(vault: Vault, topic: str) -> erasure.Outcome:
    planned = erasure.plan(vault, Scope.topic(topic))
    return erasure.execute(vault, planned, planned.digest)


def list_of(vault: Vault, erasure_id: str) -> Path:
    return vault.root / "receipts" / f"{erasure_id}.items"


def test_the_receipt_is_small_and_both_verifiers_check_the_list(vault: Vault) -> None:
    planned = erasure.plan(vault, Scope.topic("large"))
    outcome = erasure.execute(vault, planned, planned.digest)
    file, key = outcome.receipt_path.read_bytes(), (vault.root / "device.pub").read_bytes()
    assert len(file) < 8000
    content = receipt.verify(file, key)
    assert content["predicateType"] == receipt.LISTED_TYPE
    assert content["predicate"]["items"]["kinds"] == {"key": MANY, "record": MANY}
    assert "erased" not in content["predicate"]
    lines = b"\n".join(erasure.item_lines(vault, outcome.id)) + b"\n"
    assert lines.count(b"\n") == content["predicate"]["items"]["count"] == len(planned.items)
    assert receipt.lists_items(content, lines)
    second.check_items(second.check(file, key), lines)
    first, rest = lines.split(b"\n", 1)
    for wrong in (rest, lines + first + b"\n", rest + first + b"\n", lines.replace(b"record", b"recorD", 1), b""):
        assert not receipt.lists_items(content, wrong)
        with pytest.raises(second.NotVerified):
            second.check_items(second.check(file, key), wrong)
    for topic in ("large", "small"):
        assert topic.encode() not in lines


def test_a_small_receipt_names_its_items_as_before(vault: Vault) -> None:
    outcome = erase(vault, "small")
    content = receipt.verify(outcome.receipt_path.read_bytes(), (vault.root / "device.pub").read_bytes())
    assert content["predicateType"] == receipt.PREDICATE_TYPE
    assert len(content["predicate"]["erased"]) == 4
    assert not list_of(vault, outcome.id).exists()
    assert len(erasure.item_lines(vault, outcome.id)) == 4
    with pytest.raises(VerificationFailed, match="names its items"):
        receipt.lists_items(content, b"")
    with pytest.raises(second.NotVerified):
        second.check_items(content, b"")


def test_every_cut_of_a_large_erasure_is_resumed(vaults, vault: Vault, tmp_path: Path) -> None:
    """The list is durable before the journal names it, and an unnamed list goes at the next opening."""
    vault.close()
    home, at, ended = paths.home(), 0, False
    shutil.copytree(home, tmp_path / "home0")
    shutil.copytree(vault.root, tmp_path / "v0")
    while not ended:
        shutil.rmtree(home)
        shutil.rmtree(vault.root)
        shutil.copytree(tmp_path / "home0", home)
        shutil.copytree(tmp_path / "v0", vault.root)
        cut = vaults.open()
        planned = erasure.plan(cut, Scope.topic("large"))
        vaults.faults.arm("cut", at)
        try:
            erasure.execute(cut, planned, planned.digest)
            ended = True
        except vaults.faults.PowerCut:
            at += 1
        vaults.faults.arm("cut", None)
        cut.core.database.close()
        cut.core.end_turn()
        cut.core.lease.release()
        again = vaults.open()
        erasure.resume(again)
        lists = {path.stem for path in (again.root / "receipts").glob("*.items")}
        assert lists == {entry.id for entry in erasure.status(again)}
        if lists:
            assert not again.ids_of("large")
            assert erasure.verify(again, *lists, deep=True).is_clean
        else:
            assert len(again.records("large")) == MANY
        again.close()
    assert at > 10


@pytest.mark.parametrize("are_keys_lost", [False, True])
def test_a_restored_backup_lacks_what_a_list_names(vaults, vault: Vault, tmp_path: Path, are_keys_lost: bool) -> None:
    code = recovery.create(vault, tmp_path / "kit")[1]
    kit = recovery_kit.open_kit((tmp_path / "kit").read_bytes(), code)
    backup.create(vault, tmp_path / "stick")
    (tmp_path / "stick").rename(tmp_path / "away")
    outcome = erase(vault, "large")
    shutil.copytree(vault.root / "receipts", tmp_path / "receipts")
    vault.close()
    shutil.rmtree(vault.root)
    if are_keys_lost:
        shutil.rmtree(paths.slots_dir() / vault.id)
    told = later_erasures(tmp_path / "away", tmp_path / "receipts")
    restoring.restore(tmp_path / "away", vault.root, subject="alice", kit=kit, later_erasures=told)
    again = vaults.open()
    assert (len(again.records("large")), len(again.records("small"))) == (0, 2)
    assert erasure.verify(again, outcome.id, deep=True).is_clean
    later = erase(again, "small")
    statement = receipt.read(later.receipt_path.read_bytes())["predicate"]
    assert statement["previous"] == receipt.digest(outcome.receipt_path.read_bytes())
    list_of(again, outcome.id).unlink()
    (tmp_path / "receipts" / f"{outcome.id}.items").unlink()
    with pytest.raises(NothingMatched, match="whole folder"):
        later_erasures(tmp_path / "away", tmp_path / "receipts")


def test_a_repaired_vault_keeps_the_list(vaults, vault: Vault, tmp_path: Path) -> None:
    outcome = erase(vault, "large")
    before = erasure.item_lines(vault, outcome.id)
    vault.close()
    repair.repair(vault.root, tmp_path / "saved", subject="alice", ask=None)
    saved = vaults.open("saved")
    assert erasure.item_lines(saved, outcome.id) == before


def test_a_vault_that_is_removed_under_an_open_client(vaults, vault: Vault) -> None:
    reader = vaults.open(write=False)
    shutil.rmtree(vault.root)
    with pytest.raises(FedmemError):
        reader.records("small")
    with pytest.raises(FedmemError):
        vault.add_records(records(1, "small"))
    with pytest.raises(FedmemError):
        erase(vault, "small")
