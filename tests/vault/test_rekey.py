"""Moving keys: one set of keys opens the vault at any time, and an old one never again."""

import contextlib
import hashlib
import shutil
from pathlib import Path

import pytest

from fedmem import paths
from fedmem.errors import (
    KeystoreError,
    Refused,
    StorageError,
    VerificationFailed,
)
from fedmem.vault.backup import recovery
from fedmem.vault.crypto import passphrase, rekey
from fedmem.vault.vault import Vault
from tests.vault.test_recovery import PASS, held, kitted

__all__ = ["kitted"]  # fixtures


def test_rotating_retires_kits_and_loses_nothing(vaults, kitted) -> None:
    vault, kit, code = kitted
    before, epoch, file = held(vault), vault.core.table.epoch, kit.read_bytes()
    rekey.rotate(vault.core)
    assert (vault.core.table.epoch, vault.core.table.generation) == (epoch + 1, 0)
    assert held(vaults.reopen(vault)) == before
    with pytest.raises(VerificationFailed, match="retired"):
        recovery.check(vault.root, file, code)


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
