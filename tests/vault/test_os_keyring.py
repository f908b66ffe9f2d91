"""The OS keystore: only a protected one, and never a file instead of it."""

from pathlib import Path

import keyring.backend
import keyring.backends.fail
import keyring.backends.null
import keyring.errors
import pytest

from fedmem.errors import KeystoreError
from fedmem.vault.crypto.os_keyring import KeyringKeys


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


def test_a_damaged_entry_of_the_os_keystore_is_missing() -> None:
    backend = MemoryKeyring()
    keys = KeyringKeys("fedmem:test", backend)
    for text in ("", "no base64!", "c2hvcnQ="):
        backend.set_password("fedmem:test", "epoch-1", text)
        backend.set_password("fedmem:test", "table.note", "no base64!")
        with pytest.raises(KeystoreError):
            keys.load("epoch-1")
        assert keys.noted("table") is None


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
