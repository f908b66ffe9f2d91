"""Keystores: one contract, three implementations, and no falling back."""

from pathlib import Path

import pytest

from fedmem.errors import KeystoreError
from fedmem.storage.files import Files
from fedmem.vault.crypto.keystore import KeyfileKeys, Keystore
from fedmem.vault.crypto.os_keyring import KeyringKeys
from fedmem.vault.crypto.passphrase import PassphraseKeys
from tests.vault.test_os_keyring import MemoryKeyring

SALT = bytes(16)


@pytest.fixture(params=["keyfile", "passphrase", "keyring"])
def keys(request: pytest.FixtureRequest, tmp_path: Path) -> Keystore:
    slots = KeyfileKeys(Files(), tmp_path / "slots")
    if request.param == "keyring":
        return KeyringKeys("fedmem:test", MemoryKeyring())
    return slots if request.param == "keyfile" else PassphraseKeys.start(slots, "correct horse", SALT)


class TestContract:
    def test_created_is_loaded(self, keys: Keystore) -> None:
        secret = keys.create("epoch-1")
        assert len(secret) == 32
        assert keys.load("epoch-1") == secret
        assert keys.exists("epoch-1")

    def test_names_have_their_own_secrets(self, keys: Keystore) -> None:
        assert keys.create("epoch-1") != keys.create("epoch-2")

    def test_destroyed_is_gone_and_comes_back_as_another(self, keys: Keystore) -> None:
        secret = keys.create("epoch-1")
        keys.destroy("epoch-1")
        assert not keys.exists("epoch-1")
        with pytest.raises(KeystoreError, match="not in its keystore"):
            keys.load("epoch-1")
        assert keys.create("epoch-1") != secret

    def test_destroying_nothing_is_fine(self, keys: Keystore) -> None:
        keys.destroy("epoch-9")

    def test_what_came_from_elsewhere_is_kept_and_destroyed_like_the_rest(self, keys: Keystore) -> None:
        for secret in (b"s" * 32, b"t" * 32):
            keys.put("device", secret)
            assert keys.load("device") == secret
        keys.destroy("device")
        with pytest.raises(KeystoreError):
            keys.load("device")

    def test_notes_are_replaced_and_are_no_secrets(self, keys: Keystore) -> None:
        assert keys.noted("table") is None
        for value in (b"one", b"", b"three" * 8, b"x" * 64):
            keys.note("table", value)
            assert (keys.noted("table") or b"") == value
        assert keys.noted("ledger") is None
        assert not keys.exists("table")

    def test_discarding_leaves_nothing(self, keys: Keystore) -> None:
        keys.create("epoch-1")
        keys.note("table", b"note")
        keys.discard(["epoch-1", "device"])
        assert not keys.exists("epoch-1")
        assert keys.noted("table") is None


def test_zeroed_or_short_slot_is_missing(tmp_path: Path) -> None:
    keys = KeyfileKeys(Files(), tmp_path)
    for content in (bytes(32), b"x" * 31, b"x" * 33, b""):
        (tmp_path / "epoch-1").write_bytes(content)
        with pytest.raises(KeystoreError):
            keys.load("epoch-1")


def test_slots_are_for_this_user_only(tmp_path: Path) -> None:
    KeyfileKeys(Files(), tmp_path / "slots").create("epoch-1")
    assert (tmp_path / "slots" / "epoch-1").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "slots").stat().st_mode & 0o777 == 0o700
