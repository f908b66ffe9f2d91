"""Keystores: named 32-byte secrets that open a vault, held outside its root.

Invariants
- The backend is the one the vault was created with; nothing falls back to another one.
- A destroyed name cannot be loaded again; creating it anew gives a new secret.
- A passphrase alone opens nothing: each secret is HKDF(Argon2id(passphrase) || slot), and the slot is destroyed
  with the secret.
- Slot files lie in `paths.slots_dir()/<vault id>/`, readable by this user only.

Guarantees
    Argon2id with RFC 9106's second recommended parameters (t=3, p=4, 64 MiB); HKDF-SHA-512 (RFC 5869).
    An older copy of a slot file (a backup of the slots folder) brings a destroyed secret back: receipts say so.

    | case | result |
    |---|---|
    | slot missing, empty or zeroed | KeystoreError, the secret is gone |
    | wrong passphrase | KeystoreError before any container is touched |
    | empty passphrase | KeystoreError at creation |
    | no OS keystore on this machine | KeystoreError, never a file instead |

>>> import pathlib, tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     keys = KeyfileKeys(Files(), pathlib.Path(folder, "slots"))
...     keys.create("epoch-1") == keys.load("epoch-1")
True
"""

import base64
import hmac
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedmem.errors import KeystoreError
from fedmem.vault.fs import Files

SECRET_BYTES = 32
MEMORY_KIB = 64 * 1024
ARGON2ID = {"iterations": 3, "lanes": 4, "memory_cost": MEMORY_KIB}
Ask = Callable[[], str]


class Keystore(Protocol):
    """Named 32-byte secrets of one vault."""

    def exists(self, name: str) -> bool:
        """Whether `load(name)` would find a secret."""

    def create(self, name: str) -> bytes:
        """Make, store durably and return a fresh secret; an older one of that name is replaced."""

    def load(self, name: str) -> bytes:
        """The secret. Raises KeystoreError where it is missing or destroyed."""

    def destroy(self, name: str) -> None:
        """Make the secret unloadable for ever; a missing one is fine."""


def _missing(name: str) -> KeystoreError:
    return KeystoreError(
        f"The key {name} of this vault is not in its keystore. If the vault was moved, move its key slots with it; "
        "if the key was destroyed by an erasure, this copy of the vault cannot be opened."
    )


class KeyfileKeys:
    """One slot file of 32 random bytes per secret, in a folder outside the vault."""

    def __init__(self, files: Files, folder: Path) -> None:
        self._files = files
        self._folder = folder

    def exists(self, name: str) -> bool:
        return (self._folder / name).exists()

    def create(self, name: str) -> bytes:
        return self.put(name, secrets.token_bytes(SECRET_BYTES))

    def put(self, name: str, slot: bytes) -> bytes:
        """Store `slot` (32 bytes) under `name`, durably."""
        self._files.make_folder(self._folder)
        self._files.sweep(self._folder)  # a slot that a crash left half-made never sealed anything
        self._files.replace(self._folder / name, slot)
        return slot

    def load(self, name: str) -> bytes:
        if not self.exists(name):
            raise _missing(name)
        slot = self._files.read(self._folder / name, limit=SECRET_BYTES + 1)
        if len(slot) != SECRET_BYTES or not any(slot):  # zeros: a destruction was cut after its overwrite
            raise _missing(name)
        return slot

    def destroy(self, name: str) -> None:
        self._files.destroy(self._folder / name)


class PassphraseKeys:
    """Secrets derived from a passphrase and a slot file; neither opens anything without the other.

    Args:
        slots: where the random halves lie.
        master: Argon2id output of 32 bytes, from `stretch`.
    """

    def __init__(self, slots: KeyfileKeys, master: bytes) -> None:
        self._slots = slots
        self._master = master

    @classmethod
    def start(cls, slots: KeyfileKeys, passphrase: str, salt: bytes) -> "PassphraseKeys":
        """Keys of a new vault. Raises KeystoreError for an empty passphrase."""
        if not passphrase:
            raise KeystoreError("An empty passphrase protects nothing. Choose one, or use the keyfile keystore.")
        keys = cls(slots, stretch(passphrase, salt))
        # The check value lies with the slots, not in the root: who copies the root alone cannot try passphrases.
        slots.put("check-value", keys.create("check"))
        return keys

    @classmethod
    def resume(cls, slots: KeyfileKeys, passphrase: str, salt: bytes) -> "PassphraseKeys":
        """Keys of an existing vault. Raises KeystoreError for a wrong passphrase."""
        keys = cls(slots, stretch(passphrase, salt))
        expected = slots.load("check-value")
        if not hmac.compare_digest(expected, keys.load("check")):
            raise KeystoreError("The passphrase does not open this vault. Type it again; nothing was changed.")
        return keys

    def exists(self, name: str) -> bool:
        return self._slots.exists(name)

    def create(self, name: str) -> bytes:
        return self._derive(name, self._slots.create(name))

    def load(self, name: str) -> bytes:
        return self._derive(name, self._slots.load(name))

    def destroy(self, name: str) -> None:
        self._slots.destroy(name)

    def _derive(self, name: str, slot: bytes) -> bytes:
        return HKDF(SHA512(), SECRET_BYTES, salt=None, info=b"fedmem/slot/1\x00" + name.encode()).derive(
            self._master + slot
        )


class KeyringKeys:
    """Secrets in the operating system's keystore, through `keyring`.

    Args:
        service: the vault's name inside the keystore.
        backend: a keyring backend; None takes the one that `keyring` finds on this machine.
    """

    def __init__(self, service: str, backend: Any = None) -> None:
        import keyring
        import keyring.errors

        self._errors = keyring.errors
        self._service = service
        self._backend = keyring.get_keyring() if backend is None else backend
        if getattr(self._backend, "priority", 0) <= 0:
            raise KeystoreError(
                "This machine has no OS keystore that keyring can use. Start one, or create the vault with "
                "--keystore keyfile or --keystore passphrase."
            )

    def exists(self, name: str) -> bool:
        return self._read(name) is not None

    def create(self, name: str) -> bytes:
        secret = secrets.token_bytes(SECRET_BYTES)
        try:
            self._backend.set_password(self._service, name, base64.b64encode(secret).decode())
        except self._errors.KeyringError as error:
            raise KeystoreError("The OS keystore did not accept a key. Unlock it and try again.") from error
        return secret

    def load(self, name: str) -> bytes:
        stored = self._read(name)
        if stored is None:
            raise _missing(name)
        secret = base64.b64decode(stored, validate=True)
        if len(secret) != SECRET_BYTES:
            raise _missing(name)
        return secret

    def destroy(self, name: str) -> None:
        if self._read(name) is None:
            return
        try:
            self._backend.delete_password(self._service, name)
        except self._errors.KeyringError as error:
            raise KeystoreError("The OS keystore did not delete a key. Unlock it and try again.") from error

    def _read(self, name: str) -> str | None:
        try:
            stored: str | None = self._backend.get_password(self._service, name)
        except self._errors.KeyringError as error:
            raise KeystoreError("The OS keystore did not answer. Unlock it and try again.") from error
        return stored


def stretch(passphrase: str, salt: bytes) -> bytes:
    """Argon2id(passphrase, salt), 32 bytes, RFC 9106 second choice; about 0.1 s and 64 MiB."""
    return Argon2id(salt=salt, length=SECRET_BYTES, iterations=3, lanes=4, memory_cost=MEMORY_KIB).derive(
        passphrase.encode()
    )
