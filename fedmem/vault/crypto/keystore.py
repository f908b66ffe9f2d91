"""Keystores: named 32-byte secrets that open a vault, held outside its root; here as plain files.

Invariants
- The backend is the one that was chosen for the vault; nothing falls back to another one. The others are
  `passphrase` and `oskeys`.
- A destroyed name cannot be loaded again; creating it anew gives a new secret.
- Slot files lie in `paths.slots_dir()/<vault id>/`, readable by this user only.
- A note is public and small: the newest serial of the key table, the last acknowledged change, the heads of the two
  ledgers. Who puts older notes back together with an older vault is not noticed; receipts say so.

Guarantees
    Secrets are 32 bytes of the operating system's generator. A slot file protects against a thief of the vault alone.
    An older copy of a slot file (a backup of the slots folder) brings a destroyed secret back: receipts say so.

    | case | result |
    |---|---|
    | slot missing, empty or zeroed | KeystoreError, the secret is gone |
    | a note cut while it was written | the note before it |
    | a note that is damaged whole | as if there were none |

>>> import pathlib, tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     keys = KeyfileKeys(Files(), pathlib.Path(folder, "slots"))
...     keys.create("epoch-1") == keys.load("epoch-1")
True
"""

import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from fedmem.errors import KeystoreError
from fedmem.storage import two_slot_register as notes
from fedmem.storage.files import Files

SECRET_BYTES = 32
SLOT_LIMIT = 512
NOTE = ".note"
NOTES = ("table", "database", "ledger", "egress")
Ask = Callable[[], str]


class Keystore(Protocol):
    """Named 32-byte secrets of one vault."""

    def exists(self, name: str) -> bool:
        """Whether `load(name)` would find a secret."""

    def create(self, name: str) -> bytes:
        """Make, store durably and return a fresh secret; an older one of that name is replaced."""

    def load(self, name: str) -> bytes:
        """The secret. Raises KeystoreError where it is missing or destroyed."""

    def put(self, name: str, secret: bytes) -> None:
        """Store a secret of 32 bytes that came from elsewhere, durably; an older one of that name is replaced."""

    def destroy(self, name: str) -> None:
        """Make the secret unloadable for ever; a missing one is fine."""

    def note(self, name: str, value: bytes) -> None:
        """Store a public value of at most 64 bytes, durably, over the one before."""

    def noted(self, name: str) -> bytes | None:
        """The value of a note; None where there is none."""

    def discard(self, names: Iterable[str]) -> None:
        """Destroy these secrets and every note, so that nothing of this keystore is left."""


def missing(name: str) -> KeystoreError:
    """What loading a secret that is not there raises."""
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
        secret = secrets.token_bytes(SECRET_BYTES)
        self.put(name, secret)
        return secret

    def put(self, name: str, secret: bytes) -> None:
        self._files.make_folder(self._folder)
        self._files.sweep(self._folder)  # a slot that a crash left half-made never sealed anything
        self._files.replace(self._folder / name, secret)

    def load(self, name: str) -> bytes:
        slot = self.slot(name)
        if len(slot) != SECRET_BYTES:
            raise missing(name)
        return slot

    def slot(self, name: str) -> bytes:
        """What was put under `name`, of any length. Raises KeystoreError where it is missing or zeroed."""
        if not self.exists(name):
            raise missing(name)
        slot = self._files.read(self._folder / name, limit=SLOT_LIMIT)
        if not any(slot):  # zeros: a destruction was cut after its overwrite
            raise missing(name)
        return slot

    def destroy(self, name: str) -> None:
        self._files.destroy(self._folder / name)

    def note(self, name: str, value: bytes) -> None:
        path = self._folder / (name + NOTE)
        if not path.exists():
            self._files.make_folder(self._folder)
            self._files.replace(path, notes.first(value))
            return
        self._files.overwrite(path, *notes.following(self._files.read(path), value))

    def noted(self, name: str) -> bytes | None:
        path = self._folder / (name + NOTE)
        return notes.latest(self._files.read(path)) if path.exists() else None

    def discard(self, names: Iterable[str] = ()) -> None:
        for path in sorted(self._folder.iterdir()) if self._folder.is_dir() else []:
            if path.is_file():
                self._files.destroy(path)
        if self._folder.is_dir() and not any(self._folder.iterdir()):
            self._files.remove_folder(self._folder)
