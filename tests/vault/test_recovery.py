"""Recovery kits and moving keys: what opens after a loss, and what nothing opens after an erasure."""

import base64
import contextlib
import hashlib
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
    StorageError,
    UsageError,
    VerificationFailed,
    VersionMismatch,
)
from fedmem.vault.backup import backup_registry, recovery, recovery_kit
from fedmem.vault.backup.check import check
from fedmem.vault.crypto import container, passphrase, rekey
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


class TestCode:
    def test_it_survives_how_people_type(self) -> None:
        code = bytes(range(32))
        text = recovery_kit.spell(code)
        assert len(text.split("-")) == 14
        for typed in (text, text.lower(), text.replace("-", " ") + "\n", text.replace("O", "0").replace("I", "1")):
            assert recovery_kit.read_code(typed) == code

    def test_every_wrong_letter_is_noticed(self) -> None:
        text = recovery_kit.spell(bytes(range(32)))
        for at, letter in enumerate(text):
            if letter != "-":
                wrong = text[:at] + ("A" if letter != "A" else "C") + text[at + 1 :]
                with pytest.raises(KeystoreError, match="mistyped"):
                    recovery_kit.read_code(wrong)

    @pytest.mark.parametrize("text", ["", "AAAA", "é" * 56, "A" * 56, "A" * 64, "A" * 10_000])
    def test_what_is_no_code(self, text: str) -> None:
        with pytest.raises(KeystoreError):
            recovery_kit.read_code(text)


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


def test_a_kit_holds_no_key_that_signs(kitted) -> None:
    vault, kit, code = kitted
    fields = json.loads(kit.read_bytes())
    sealing_key = recovery_kit._sealing_key(recovery_kit.read_code(code), fields)
    identity = f"recovery/{vault.id}/{fields['id']}/{fields['created']}"
    plain = container.open_cell(sealing_key, base64.b64decode(fields["sealed"]), identity=identity)
    assert json.loads(plain).keys() == {"key"}
    assert vault.core.keystore.load("device").hex().encode() not in plain


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


def test_a_kit_of_an_earlier_fedmem_still_opens(kitted, monkeypatch: pytest.MonkeyPatch) -> None:
    vault, _, code = kitted
    known = vault.core.table.facts["kits"]
    monkeypatch.setattr(recovery_kit, "SCHEMA", "fedmem.recovery-kit/1")
    kit_id, key = next(iter(known)), recovery_kit.X25519PrivateKey.generate()
    file = recovery_kit.encode(vault.id, kit_id, recovery_kit.read_code(code), key)
    assert json.loads(file)["schema"] == "fedmem.recovery-kit/1"
    assert recovery_kit.open_kit(file, code).id == kit_id


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


def test_rotating_retires_kits_and_loses_nothing(vaults, kitted) -> None:
    vault, kit, code = kitted
    before, epoch, file = held(vault), vault.core.table.epoch, kit.read_bytes()
    rekey.rotate(vault.core)
    assert (vault.core.table.epoch, vault.core.table.generation) == (epoch + 1, 0)
    assert held(vaults.reopen(vault)) == before
    with pytest.raises(VerificationFailed, match="retired"):
        recovery.check(vault.root, file, code)


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


def test_every_damaged_byte_of_a_kit_is_noticed(kitted) -> None:
    vault, kit, code = kitted
    whole = kit.read_bytes()
    for at in range(0, len(whole), 7):
        damaged = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        with pytest.raises(VerificationFailed):
            recovery.check(vault.root, damaged, code)
    for broken in (b"", b"{}", b"[]", b"null", whole[:-30], b"[" * 100_000):
        with pytest.raises(VerificationFailed):
            recovery.check(vault.root, broken, code)


def test_a_kit_of_a_later_format(kitted) -> None:
    vault, kit, code = kitted
    known = json.loads(kit.read_bytes())
    known["schema"] = "fedmem.recovery-kit/3"
    del known["checksum"]
    known["checksum"] = recovery_kit.digest(known)
    with pytest.raises(VersionMismatch):
        recovery.check(vault.root, json.dumps(known).encode(), code)


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


class TestPassphrase:
    @pytest.fixture
    def locked(self, vaults, tmp_path: Path) -> Vault:
        vault = vaults.create(keystore="passphrase", ask=lambda: "rose")
        vault.add_records(vaults.records(2))
        vaults.block(vault)
        return vault

    def test_the_new_one_opens_and_the_old_one_does_not(self, vaults, locked: Vault, tmp_path: Path) -> None:
        before, key = held(locked), locked.core.keystore.load("device")
        _, code = recovery.create(locked, tmp_path / "kit")
        shutil.copytree(paths.slots_dir(), tmp_path / "old slots")
        rekey.change_passphrase(locked.core, lambda: "tulip")
        assert held(locked) == before
        locked.add_records(vaults.records(1))
        vault = vaults.reopen(locked, **PASS)
        assert (held(vault)[1:], vault.core.keystore.load("device")) == (before[1:], key)
        vault.close()
        with pytest.raises(KeystoreError):
            vaults.open(ask=lambda: "rose")
        assert recovery.check(vault.root, (tmp_path / "kit").read_bytes(), code)
        # An old copy of the slots and the old passphrase open the vault of today no more.
        shutil.rmtree(paths.slots_dir())
        (tmp_path / "old slots").rename(paths.slots_dir())
        for word in ("rose", "tulip"):
            with pytest.raises(KeystoreError):
                vaults.open(ask=lambda word=word: word)

    def test_again_and_again(self, vaults, locked: Vault) -> None:
        vault = locked
        for word in ("tulip", "aster", "lupin"):
            rekey.change_passphrase(vault.core, lambda word=word: word)
            vault = vaults.reopen(vault, ask=lambda word=word: word)
        assert held(vault)[0] == 2
        sets = [path for path in (paths.slots_dir() / vault.id).iterdir() if path.is_dir()]
        assert len(sets) == 1

    def test_an_empty_one_and_a_vault_without_one(self, vaults, locked: Vault) -> None:
        with pytest.raises(KeystoreError):
            rekey.change_passphrase(locked.core, lambda: "")
        assert held(vaults.reopen(locked, ask=lambda: "rose"))[0] == 2
        with pytest.raises(Refused, match="keyfile"):
            rekey.change_passphrase(vaults.create("plain").core, lambda: "tulip")

    @pytest.mark.parametrize(
        ("kind", "at"), [*(("cut", at) for at in range(0, 90, 2)), *(("full", at) for at in range(1, 90, 6))]
    )
    def test_cut_or_refused_anywhere_one_of_the_two_opens(
        self, vaults, faults, kind: str, at: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The real function costs 0.1 s a call; it is not what is tested here.
        monkeypatch.setattr(passphrase, "stretch", lambda word, salt: hashlib.sha256(word.encode() + salt).digest())
        vault = vaults.create(keystore="passphrase", ask=lambda: "rose")
        vault.add_records(vaults.records(2))
        vaults.block(vault)
        before = held(vault)
        faults.arm(kind, at)
        try:
            rekey.change_passphrase(vault.core, lambda: "tulip")
            changed = True
        except (StorageError, faults.PowerCut):
            changed = False
        faults.arm(kind, None)
        if kind == "full":
            assert held(vault) == before
            vault.add_records(vaults.records(1))
        vault.close()
        found = []
        for word in ("rose", "tulip"):
            with contextlib.suppress(KeystoreError):
                found.append((word, held(vaults.open(ask=lambda word=word: word))))
                vaults.close()
        ((word, state),) = found
        assert state[1:] == before[1:]
        assert word == "tulip" or not changed
        assert "moving" not in vaults.open(ask=lambda: word).core.table.facts
