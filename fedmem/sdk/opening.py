"""Open the vault and the release of a client.

Invariants
- The keystore is never downgraded: `auto` uses the operating system's keyring, or raises an error.
- If two programs find no vault at the same time, one creates it and the other opens it.

    vault = open_vault("ana", vault_root("ana"), "passphrase", getpass.getpass)
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedmem.errors import KeystoreError
from fedmem.sdk.doctor import has_keyring
from fedmem.vault.crypto.vault_header import NAME
from fedmem.vault.opening import TIMEOUT, VaultExists
from fedmem.vault.vault import Vault

if TYPE_CHECKING:
    from fedmem.training.release import Release

__all__ = ["Ask", "Keystore", "chosen_keystore", "open_release", "open_vault"]
Keystore = Literal["auto", "keyring", "passphrase", "keyfile"]
Ask = Callable[[], str]


def open_release(release: "str | Path | Release | None") -> Any:
    """Return a release as an object. Load it if a folder is given.

    Args:
        release: Folder of a release, a loaded release, or None.

    Raises:
        FedmemError: Any error of `Release.load`.
    """
    if not isinstance(release, str | Path):
        return release
    from fedmem.training.release import Release

    return Release.load(Path(release))


def open_vault(
    subject: str, root: Path, keystore: Keystore, ask: Ask | None, write: bool = True, timeout: float = TIMEOUT
) -> Vault:
    """Open the vault at `root`. If there is none and `write` is set, create it.

    If two programs find no vault at the same time, one creates it. The other waits up to `timeout` seconds and opens
    it.

    Args:
        subject: Name of the subject.
        root: Folder of the vault.
        keystore: Keystore of a new vault.
        ask: Returns the passphrase, if the keystore needs one.
        write: Open the vault for writing.
        timeout: Longest wait for other programs that write, in seconds.

    Raises:
        KeystoreError: A key is missing, the passphrase is wrong, or `auto` finds no keyring.
        NothingMatched: `write` is False, and there is no vault.
        Busy: Other programs wrote for longer than `timeout`.
        VersionMismatch: The vault has another format.
        StorageError: The disk failed.
    """
    if not (root / NAME).is_file() and write:
        with suppress(VaultExists):
            backend = chosen_keystore(keystore)
            return Vault.create(root, subject=subject, keystore=backend, ask=ask, timeout=timeout)
    return Vault.open(root, subject=subject, ask=ask, write=write, timeout=timeout)


def chosen_keystore(keystore: Keystore) -> Literal["keyring", "passphrase", "keyfile"]:
    """Return the backend of a new vault's keystore.

    Args:
        keystore: The caller's choice.

    Raises:
        KeystoreError: The choice is `auto`, and the operating system has no keyring.
    """
    if keystore != "auto":
        return keystore
    if has_keyring():
        return "keyring"
    raise KeystoreError(
        "This machine has no OS keyring. Choose: keystore='passphrase' with ask=…, or keystore='keyfile' "
        "(a key file in your home folder, which protects only if a thief has the vault without that folder)."
    )
