"""Keystores: one contract, three implementations, and no falling back."""

from pathlib import Path

import keyring.backend
import keyring.backends.fail
import keyring.backends.null
import keyring.errors
import pytest

from fedmem.errors import KeystoreError
from fedmem.storage.files import Files
from fedmem.vault.crypto.keystore import KeyfileKeys, Keystore
from fedmem.vault.crypto.os_keyring import KeyringKeys
from fedmem.vault.crypto.passphrase import PassphraseKeys

SALT = bytes(16)


class MemoryKeyring(keyring.backend.KeyringBackend):
    """An OS keystore for tests."""

    priority = 1

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.held.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.held[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        if self.held.pop((service, username), None) is None:
            raise keyring.errors.PasswordDeleteError


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


@pytest.mark.parametrize("damage", [b"", b"x" * 20, bytes(32), b"x" * 40, b"x" * 500])
def test_a_damaged_slot_of_a_secret_from_elsewhere_is_missing(tmp_path: Path, damage: bytes) -> None:
    keys = PassphraseKeys.start(KeyfileKeys(Files(), tmp_path), "correct horse", SALT)
    keys.put("device", b"s" * 32)
    assert b"s" * 32 not in (tmp_path / "device").read_bytes()
    (tmp_path / "device").write_bytes(damage)
    with pytest.raises(KeystoreError):
        keys.load("device")


def test_a_damaged_entry_of_the_os_keystore_is_missing() -> None:
    backend = MemoryKeyring()
    keys = KeyringKeys("fedmem:test", backend)
    for text in ("", "no base64!", "c2hvcnQ="):
        backend.set_password("fedmem:test", "epoch-1", text)
        backend.set_password("fedmem:test", "table.note", "no base64!")
        with pytest.raises(KeystoreError):
            keys.load("epoch-1")
        assert keys.noted("table") is None


def test_wrong_passphrase_is_told_at_once(tmp_path: Path) -> None:
    slots = KeyfileKeys(Files(), tmp_path)
    PassphraseKeys.start(slots, "correct horse", SALT)
    with pytest.raises(KeystoreError, match="Type it again") as caught:
        PassphraseKeys.resume(slots, "wrong horse", SALT)
    assert caught.value.exit_code == 8
    assert PassphraseKeys.resume(slots, "correct horse", SALT)


def test_passphrase_without_its_slot_opens_nothing(tmp_path: Path) -> None:
    slots = KeyfileKeys(Files(), tmp_path)
    keys = PassphraseKeys.start(slots, "correct horse", SALT)
    secret = keys.create("epoch-1")
    (tmp_path / "epoch-1").write_bytes(b"y" * 32)
    assert PassphraseKeys.resume(slots, "correct horse", SALT).load("epoch-1") != secret


def test_slot_without_the_passphrase_is_not_the_secret(tmp_path: Path) -> None:
    keys = PassphraseKeys.start(KeyfileKeys(Files(), tmp_path), "correct horse", SALT)
    secret = keys.create("epoch-1")
    assert secret not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_empty_passphrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeystoreError):
        PassphraseKeys.start(KeyfileKeys(Files(), tmp_path), "", SALT)


def test_no_os_keystore_is_an_error_and_never_a_file(tmp_path: Path) -> None:
    with pytest.raises(KeystoreError, match="no OS keystore"):
        KeyringKeys("fedmem:test", keyring.backends.fail.Keyring())
    assert list(tmp_path.iterdir()) == []


class WeakKeyring(MemoryKeyring):
    """A keyring that keeps its secrets in a plain file."""

    priority = 0.5


class Chain(MemoryKeyring):
    """Several keyrings, as keyring's chainer puts them together."""

    priority = 10

    def __init__(self, *backends: keyring.backend.KeyringBackend) -> None:
        super().__init__()
        self.backends = backends


@pytest.mark.parametrize(
    "backend", [WeakKeyring(), keyring.backends.null.Keyring(), keyring.backends.fail.Keyring(), Chain(WeakKeyring())]
)
def test_a_keyring_below_the_priority_of_auto_is_refused(backend: keyring.backend.KeyringBackend) -> None:
    with pytest.raises(KeystoreError, match="--keystore passphrase"):
        KeyringKeys("fedmem:test", backend)


def test_a_chain_writes_to_its_protected_keyring() -> None:
    strong, weak = MemoryKeyring(), WeakKeyring()
    KeyringKeys("fedmem:test", Chain(strong, weak)).create("epoch-1")
    assert len(strong.held) == 1
    assert not weak.held


def test_slots_are_for_this_user_only(tmp_path: Path) -> None:
    KeyfileKeys(Files(), tmp_path / "slots").create("epoch-1")
    assert (tmp_path / "slots" / "epoch-1").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "slots").stat().st_mode & 0o777 == 0o700
