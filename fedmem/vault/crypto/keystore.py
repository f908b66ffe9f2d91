"""The interface of keystores, and the keystore of plain files. A keystore holds the secrets that open a vault.

Invariants
- A secret has a name and 32 bytes, and lies outside the vault's folder.
- A vault uses the backend that was chosen for it, and never another one. The other backends are in `passphrase` and
  `os_keyring`.
- A destroyed secret cannot be loaded again. Creating a secret of the same name gives new bytes.
- Slot files lie in `paths.slots_dir()/<vault id>/`. Only this user can read them.
- A note is public and small: the newest serial of the key table, the last acknowledged change, the heads of the two
  ledgers. If older notes are restored together with an older vault, this is not detected; receipts say so.

Guarantees
    Secrets are 32 bytes of the operating system's random generator. A slot file protects the vault against a thief who
    has the vault's folder only. An older copy of a slot file (a backup of the slots folder) restores a destroyed
    secret; receipts say so.

    | case | result |
    |---|---|
    | slot missing, empty or all zeros | KeystoreError, the secret is lost |
    | a write of a note that a crash interrupted | the previous note, or the new one |
    | a note with both slots damaged | None, as if there were no note |

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
    """A store of named 32-byte secrets and small public notes of one vault.

    Methods raise KeystoreError if the backend does not answer, and StorageError if a file cannot be read or written.
    """

    def exists(self, name: str) -> bool:
        """Return True if there is an entry of this name; `load` may still reject it as damaged."""

    def create(self, name: str) -> bytes:
        """Create a new secret, store it durably and return it. Replace an older one of this name.

        Args:
            name: name of the secret.

        Returns:
            32 bytes, new and uniformly random.

        Raises:
            KeystoreError, StorageError: no secret was stored.
        """

    def load(self, name: str) -> bytes:
        """Return a secret.

        Args:
            name: name of the secret.

        Returns:
            32 bytes.

        Raises:
            KeystoreError: it is missing, destroyed or damaged.
        """

    def put(self, name: str, secret: bytes) -> None:
        """Store a given secret of 32 bytes durably; replace an older one of this name.

        Args:
            name: name of the secret.
            secret: 32 bytes.

        Raises:
            KeystoreError, StorageError: the secret was not stored.
        """

    def destroy(self, name: str) -> None:
        """Destroy the secret, so that `load` fails from now on; do nothing if it is missing.

        Guarantees
            After the return the keystore does not give the secret back. A copy that the file system or the operating
            system made is out of its reach.

        Args:
            name: name of the secret.

        Raises:
            KeystoreError, StorageError: the secret may still exist.
        """

    def note(self, name: str, value: bytes) -> None:
        """Store a public value of at most 64 bytes durably, in place of the previous one.

        Args:
            name: name of the note, one of `NOTES`.
            value: at most 64 bytes, not secret.
        """

    def noted(self, name: str) -> bytes | None:
        """Return the value of a note, or None if there is no valid note.

        Args:
            name: name of the note, one of `NOTES`.
        """

    def discard(self, names: Iterable[str]) -> None:
        """Destroy these secrets and all notes. `names` must list all secrets of the keystore.

        Args:
            names: all secrets of the keystore, because an OS keystore cannot list them.
        """


def missing(name: str) -> KeystoreError:
    """Return the error for a secret that is missing, destroyed or damaged.

    Args:
        name: name of the secret; it is in the message.
    """
    return KeystoreError(
        f"The key {name} of this vault is not in its keystore. If the vault was moved, move its key slots with it; "
        "if the key was destroyed by an erasure, this copy of the vault cannot be opened."
    )


class KeyfileKeys:
    """A keystore of plain files: one slot file of 32 bytes for each secret, in a folder outside the vault."""

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
        self._files.sweep(self._folder)  # remove slots that a crash left incomplete; nothing was sealed with them
        self._files.replace(self._folder / name, secret)

    def load(self, name: str) -> bytes:
        slot = self.slot(name)
        if len(slot) != SECRET_BYTES:
            raise missing(name)
        return slot

    def slot(self, name: str) -> bytes:
        """Return the bytes of a slot file.

        Args:
            name: name of the secret.

        Returns:
            At most 512 bytes.

        Raises:
            KeystoreError: the file is missing, empty or all zeros.
        """
        if not self.exists(name):
            raise missing(name)
        slot = self._files.read(self._folder / name, limit=SLOT_LIMIT)
        if not any(slot):  # all zeros: a crash interrupted `destroy` after the overwrite
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
