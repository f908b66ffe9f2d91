"""The header of a vault: its public facts, in the file `vault.json`.

Invariants
- The header holds public facts only: format, random id, keystore backend, simulated mark, KDF parameters, and the name
  of the set of slots.
- The key table holds the digest of the header, sealed. So a vault with a changed mark or backend does not open.
- The header is the last file that a creation writes, so an interrupted creation leaves no vault. A folder without a
  header is no vault. The header is replaced when the keys move to another keystore.
"""

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedmem import paths
from fedmem.errors import KeystoreError, NothingMatched, UsageError, VerificationFailed, VersionMismatch
from fedmem.storage.canonical import canonical_json
from fedmem.storage.files import Files
from fedmem.vault.crypto.keystore import Ask, KeyfileKeys, Keystore
from fedmem.vault.crypto.os_keyring import KeyringKeys
from fedmem.vault.crypto.passphrase import ARGON2ID, PassphraseKeys

NAME = "vault.json"
FORMAT = 1
BACKENDS = ("keyfile", "passphrase", "keyring")


@dataclass(frozen=True)
class Header:
    """The public facts of one vault.

    Attributes:
        id: 32 hex digits.
        keystore: keyfile, passphrase or keyring.
        simulated: True if its noise may come from a seed; it never changes.
        kdf: Argon2id parameters and salt (hex) for the passphrase keystore, otherwise None.
        slots: name of the set of slots that holds the keys; "" is the set of the vault's creation.
        format: version of the file format.
    """

    id: str
    keystore: str
    simulated: bool
    kdf: dict[str, Any] | None
    slots: str = ""
    format: int = FORMAT

    def encode(self) -> bytes:
        """Return the bytes of the file."""
        return canonical_json({name: fact for name, fact in asdict(self).items() if fact != ""})


def new_facts(vault_id: str, keystore: str, simulated: bool, slots: str = "") -> Header:
    """Return the header of a new vault, or of a vault whose keys move.

    Args:
        vault_id: 32 hex digits.
        keystore: keyfile, passphrase or keyring.
        simulated: True for a vault whose noise may come from a seed.
        slots: name of the set of slots, 16 hex digits; "" for a new vault.

    Raises:
        UsageError: there is no such keystore.
    """
    if keystore not in BACKENDS:
        raise UsageError(f"There is no such keystore. Choose one of {', '.join(BACKENDS)}.")
    kdf = {"name": "argon2id", "salt": secrets.token_hex(16), **ARGON2ID} if keystore == "passphrase" else None
    return Header(vault_id, keystore, simulated, kdf, slots)


def read_facts(files: Files, root: Path) -> tuple[Header, bytes]:
    """Return the header of the vault at `root`, and its bytes.

    Args:
        files: the file layer.
        root: the vault's folder.

    Raises:
        NothingMatched: no vault here. VersionMismatch: another format. VerificationFailed: damaged.
        StorageError: the file cannot be read.
    """
    if not (root / NAME).is_file():
        raise NothingMatched(f"There is no vault at {root}. Create one, or give the right folder.")
    data = files.read(root / NAME)
    return decode(data), data


def keep_copy(files: Files, header: Header) -> None:
    """Write a copy of the header beside the key slots: `fedmem vault repair` needs it if the header is lost.

    Args:
        files: the file layer.
        header: the present header of the vault.

    Raises:
        StorageError: the earlier copy, if any, is in place.
    """
    folder = paths.slots_dir() / header.id
    files.make_folder(folder)
    files.replace(folder / NAME, header.encode())


def decode(data: bytes) -> Header:
    """Return the header that `Header.encode` wrote.

    Args:
        data: the bytes of vault.json.

    Raises:
        VersionMismatch: another format. VerificationFailed: damaged, or with other KDF parameters than this version
        uses.
    """
    try:
        fields = json.loads(data)
        if fields["format"] != FORMAT:
            raise VersionMismatch("This vault has a format that this fedmem does not read. Update fedmem.")
        header = Header(**fields)
        _check(header)
    except (ValueError, TypeError, KeyError):
        raise VerificationFailed("The vault's public facts are damaged. Restore vault.json from a backup.") from None
    return header


def _check(header: Header) -> None:
    expected_kdf = None if header.keystore != "passphrase" else {"name": "argon2id", **ARGON2ID}
    kdf = None if header.kdf is None else {name: header.kdf[name] for name in header.kdf if name != "salt"}
    # KDF parameters of a file are never used: weaker ones are an attack, very large ones exhaust the memory.
    if header.keystore not in BACKENDS or kdf != expected_kdf or type(header.simulated) is not bool:
        raise ValueError
    if header.slots and len(bytes.fromhex(header.slots)) != 8:  # it becomes the name of a folder
        raise ValueError
    if len(bytes.fromhex(header.id)) != 16 or (header.kdf and len(bytes.fromhex(header.kdf["salt"])) != 16):
        raise ValueError


def start_keystore(header: Header, files: Files, slots: Path, ask: Ask | None) -> Keystore:
    """Create the keystore of a new vault, or of a new set of slots.

    Args:
        header: the header of the vault.
        files: the file layer.
        slots: the folder of all sets of slots of the vault.
        ask: returns the passphrase; the passphrase keystore needs it.

    Raises:
        KeystoreError: no passphrase or an empty one, or the machine has no such keystore. StorageError.
    """
    if header.keystore == "passphrase":
        return PassphraseKeys.start(_key_files(header, files, slots), _ask_passphrase(ask), _salt(header))
    return bare_keystore(header, files, slots)


def open_keystore(header: Header, files: Files, slots: Path, ask: Ask | None) -> Keystore:
    """Open the keystore of an existing vault: always the backend that the header names.

    Args:
        header: the header of the vault.
        files: the file layer.
        slots: the folder of all sets of slots of the vault.
        ask: returns the passphrase; the passphrase keystore needs it.

    Raises:
        KeystoreError: no passphrase or a wrong one, or the machine has no such keystore. StorageError.
    """
    if header.keystore == "passphrase":
        return PassphraseKeys.resume(_key_files(header, files, slots), _ask_passphrase(ask), _salt(header))
    return bare_keystore(header, files, slots)


def bare_keystore(header: Header, files: Files, slots: Path) -> Keystore:
    """Return the keystore without its passphrase. It can read notes, and destroy all secrets.

    Args:
        header: the header of the vault.
        files: the file layer.
        slots: the folder of all sets of slots of the vault.

    Raises:
        KeystoreError: the machine has no such keystore.
    """
    if header.keystore == "keyring":
        return KeyringKeys(f"fedmem:{header.id}" + (f":{header.slots}" if header.slots else ""))
    return _key_files(header, files, slots)


def _key_files(header: Header, files: Files, slots: Path) -> KeyfileKeys:
    return KeyfileKeys(files, slots / header.slots if header.slots else slots)


def passphrase(ask: Ask | None) -> Ask:
    """Ask for a new passphrase once, and return a function that returns it.

    Args:
        ask: returns the passphrase; None if there is no terminal.

    Raises:
        KeystoreError: `ask` is None, or the passphrase is empty.
    """
    answer = _ask_passphrase(ask)
    if not answer:
        raise KeystoreError("An empty passphrase protects nothing. Choose one, or use the keyfile keystore.")
    return lambda: answer


def _ask_passphrase(ask: Ask | None) -> str:
    if ask is None:
        raise KeystoreError("This vault opens with a passphrase. Run the command on a terminal, or pass `ask`.")
    return ask()


def _salt(header: Header) -> bytes:
    return bytes.fromhex((header.kdf or {})["salt"])
