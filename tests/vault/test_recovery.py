"""Recovery kits and moving keys: what opens after a loss, and what nothing opens after an erasure."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from fedmem import erasure, paths
from fedmem.errors import (
    Busy,
    KeystoreError,
    Refused,
    UsageError,
    VerificationFailed,
)
from fedmem.vault.backup import backup_registry, recovery
from fedmem.vault.backup.check import check
from fedmem.vault.crypto.device_key import fingerprint, public_pem
from fedmem.vault.crypto.key_table import RolledBack
from fedmem.vault.vault import ALL, Vault

PASS = {"ask": lambda: "tulip"}
_spec = importlib.util.spec_from_file_location(
    "verify_receipt", Path(__file__).parents[2] / "client" / "verify_receipt.py"
)
assert _spec is not None
assert _spec.loader is not None
second_verifier = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(second_verifier)


@pytest.fixture
def kitted(vaults, tmp_path: Path):
    """(vault, kit file, code): three records and a block, a kit made after them."""
    vault = vaults.create()
    vault.add_records(vaults.records(3))
    vaults.block(vault)
    _, code = recovery.create(vault, tmp_path / "kit.json")
    return vault, tmp_path / "kit.json", code


def lose_keys(vault: Vault) -> None:
    shutil.rmtree(paths.slots_dir() / vault.id)


def erase(vault: Vault, topic: str) -> erasure.Outcome:
    planned = erasure.plan(vault, erasure.Scope.topic(topic))
    return erasure.execute(vault, planned, planned.digest)


def held(vault: Vault) -> tuple[int, list[str], list[str]]:
    """What the ordinary path shows."""
    return len(vault.records(ALL)), [block.id for block in vault.blocks()], [e.kind for e in vault.ledger.events()]


@pytest.mark.parametrize("backend", ["keyfile", "passphrase"])
def test_a_lost_keystore_comes_back_and_nothing_is_lost(vaults, kitted, backend: str) -> None:
    vault, kit, code = kitted
    vault.add_records(vaults.records(1, "gone"))
    first = erase(vault, "gone").receipt_path.read_bytes()
    code = recovery.create(vault, kit.with_name("third"))[1]
    kit = kit.with_name("third")
    before, key = held(vault), (vault.root / "device.pub").read_bytes()
    vault.close()
    lose_keys(vault)
    with pytest.raises(KeystoreError):
        vaults.open()
    recovery.restore(vault.root, kit.read_bytes(), code, subject="alice", keystore=backend, **PASS)
    options = PASS if backend == "passphrase" else {}
    vault = vaults.open(**options)
    assert held(vault) == before
    new_key = (vault.root / "device.pub").read_bytes()
    assert new_key == public_pem(vault.core.keystore.load("device")) != key
    assert (vault.root / "receipts" / f"{fingerprint(key)}.pub").read_bytes() == key
    vault.add_records(vaults.records(1))
    assert recovery.check(vault.root, kit.read_bytes(), code).vault == vault.id
    second = erase(vault, vaults.TOPIC).receipt_path.read_bytes()
    assert erasure.receipt.verify(second, new_key)["predicate"]["earlier_keys"] == [fingerprint(key)]
    for verify_chain in (erasure.receipt.verify_chain, second_verifier.check_chain):
        assert len(verify_chain([first, second], key, new_key)) == 2
        for keys in ((key,), (new_key,), (key, public_pem(bytes(32)))):
            with pytest.raises((VerificationFailed, second_verifier.NotVerified)):
                verify_chain([first, second], *keys)
    assert check(vault.root, subject="alice", ask=PASS["ask"]) == []


def test_a_chain_whose_key_changes_without_a_word_is_refused(vaults, kitted) -> None:
    vault, _, _ = kitted
    receipts, keys = [], []
    for topic in ("one", "two"):
        vault.add_records(vaults.records(1, topic))
        receipts.append(erase(vault, topic).receipt_path.read_bytes())
        keys.append((vault.root / "device.pub").read_bytes())
        vault.core.files.replace(vault.root / "device.pub", public_pem(vault.core.keystore.create("device")))
    for verify_chain in (erasure.receipt.verify_chain, second_verifier.check_chain):
        with pytest.raises((VerificationFailed, second_verifier.NotVerified), match="key"):
            verify_chain(receipts, *keys)


def test_a_kit_survives_learning_and_opens_what_came_after_it(vaults, kitted) -> None:
    vault, kit, code = kitted
    epoch = vault.core.table.epoch
    vaults.block(vault, "another")
    assert vault.core.table.epoch > epoch
    before = held(vault)
    vault.close()
    lose_keys(vault)
    recovery.restore(vault.root, kit.read_bytes(), code, subject="alice", keystore="keyfile")
    assert held(vaults.open()) == before


def test_an_erasure_retires_the_kit(vaults, kitted) -> None:
    vault, kit, code = kitted
    vault.add_records(vaults.records(2, topic="other"))
    file = kit.read_bytes()
    erase(vault, vaults.TOPIC)
    assert not kit.exists()
    assert backup_registry.registered_copies(vault.core) == []
    vault.close()
    for action in (
        lambda: recovery.check(vault.root, file, code),
        lambda: recovery.restore(vault.root, file, code, subject="alice", keystore="keyfile"),
    ):
        with pytest.raises(VerificationFailed, match="retired") as caught:
            action()
        assert caught.value.exit_code == 6
    lose_keys(vault)
    with pytest.raises(VerificationFailed):
        recovery.restore(vault.root, file, code, subject="alice", keystore="keyfile")


def test_a_kit_out_of_reach_is_named_and_the_new_one_is_not(vaults, kitted, tmp_path: Path) -> None:
    vault, kit, _ = kitted
    (old,) = [copy.id for copy in backup_registry.registered_copies(vault.core)]
    kit.rename(tmp_path / "safe")
    erase(vault, vaults.TOPIC)
    new, _ = recovery.create(vault, kit)
    assert backup_registry.out_of_reach(vault.core) == [old]
    with vault.core.writing():
        assert new not in backup_registry.retire(vault.core)
    assert kit.exists()
    (tmp_path / "safe").rename(kit)  # it comes back into reach: the next erasure takes it
    with vault.core.writing():
        assert backup_registry.retire(vault.core) == []


def test_another_file_at_the_kits_place_is_left_alone(vaults, kitted) -> None:
    vault, kit, _ = kitted
    kit.write_text(json.dumps({"id": "something else"}))
    erase(vault, vaults.TOPIC)
    assert kit.exists()
    assert len(backup_registry.out_of_reach(vault.core)) == 1


def test_file_without_code_and_code_without_file_open_nothing(vaults, kitted, tmp_path: Path) -> None:
    vault, kit, code = kitted
    _, other = recovery.create(vault, tmp_path / "other.json")
    with pytest.raises(KeystoreError, match="does not open"):
        recovery.check(vault.root, kit.read_bytes(), other)
    with pytest.raises(KeystoreError, match="does not open"):
        recovery.check(vault.root, (tmp_path / "other.json").read_bytes(), code)
    assert recovery.check(vault.root, (tmp_path / "other.json").read_bytes(), other)
    secret = vault.core.keystore.load("device")
    assert secret.hex().encode() not in kit.read_bytes()
    assert secret not in kit.read_bytes()


def test_a_kit_of_another_vault_and_another_subject(vaults, kitted) -> None:
    vault, kit, code = kitted
    other = vaults.create("other")
    with pytest.raises(Refused, match="another vault"):
        recovery.check(other.root, kit.read_bytes(), code)
    vault.close()
    with pytest.raises(Refused, match="another subject"):
        recovery.restore(vault.root, kit.read_bytes(), code, subject="bob", keystore="keyfile")
    assert len(vaults.open().records(ALL)) == 3


def test_a_second_process_holds_the_vault(kitted) -> None:
    vault, kit, code = kitted
    with vault.core.turn(), pytest.raises(Busy):
        recovery.restore(vault.root, kit.read_bytes(), code, subject="alice", keystore="keyfile", timeout=0)


def test_an_older_version_is_not_restored_over_the_notes(vaults, kitted) -> None:
    vault, kit, code = kitted
    vault.add_records(vaults.records(1))
    old = (vault.root / "table.log").read_bytes()
    vault.add_records(vaults.records(1))
    vault.close()
    (vault.root / "table.log").write_bytes(old)
    with pytest.raises(RolledBack):
        recovery.restore(vault.root, kit.read_bytes(), code, subject="alice", keystore="keyfile")


def test_places_that_are_refused(vaults, tmp_path: Path) -> None:
    vault = vaults.create()
    (tmp_path / "there").write_text("mine")
    for place in (
        vault.root / "kit.json",
        vault.root / "blocks" / "kit",
        paths.slots_dir() / "kit",
        tmp_path / "there",
    ):
        with pytest.raises(Refused):
            recovery.create(vault, place)
    with pytest.raises(UsageError):
        recovery.create(vault, tmp_path / "absent" / "kit")
    assert (tmp_path / "there").read_text() == "mine"
    assert backup_registry.registered_copies(vault.core) == []


def test_no_more_kits_than_the_header_has_room_for(vaults, tmp_path: Path) -> None:
    vault = vaults.create()
    made = [recovery.create(vault, tmp_path / f"kit-{i}") for i in range(recovery.MAX_KITS)]
    with pytest.raises(Refused, match="keys rotate"):
        recovery.create(vault, tmp_path / "one-more")
    for i, (_, code) in enumerate(made):
        assert recovery.check(vault.root, (tmp_path / f"kit-{i}").read_bytes(), code)


@pytest.mark.parametrize("at", range(12))
def test_making_a_kit_cut_anywhere(vaults, faults, tmp_path: Path, at: int) -> None:
    vault = vaults.create()
    vault.add_records(vaults.records(2))
    faults.arm("cut", at)
    try:
        code = recovery.create(vault, tmp_path / "kit.json")[1]
    except faults.PowerCut:
        code = None
    faults.arm("cut", None)
    vault = vaults.reopen(vault)
    assert len(vault.records(ALL)) == 2
    if code is not None:
        assert recovery.check(vault.root, (tmp_path / "kit.json").read_bytes(), code)


@pytest.mark.parametrize("at", range(0, 84, 2))
def test_restoring_cut_anywhere_is_done_again(vaults, faults, kitted, at: int) -> None:
    vault, kit, code = kitted
    before = held(vault)
    vault.close()
    lose_keys(vault)
    again = {"subject": "alice", "keystore": "keyfile", "files": faults}
    faults.arm("cut", at)
    try:
        recovery.restore(vault.root, kit.read_bytes(), code, **again)
    except faults.PowerCut:
        faults.arm("cut", None)
        recovery.restore(vault.root, kit.read_bytes(), code, **again)
    faults.arm("cut", None)
    assert held(vaults.open()) == before
