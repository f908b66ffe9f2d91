"""`vault.json`: the public facts of a vault, written last of all its files, and replaced when its keys move.

Invariants
- It holds public facts only: format, random id, keystore backend, simulated mark, KDF parameters, which set of slots.
- Its digest is sealed in the key table, so a changed mark or backend does not open.
- A folder without it is no vault; a creation that was cut leaves none.
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
    """Public facts of one vault.

    Attributes:
        keystore: keyfile, passphrase or keyring.
        simulated: whether its keys may come from a seed; for ever.
        kdf: Argon2id parameters and salt (hex) in passphrase mode, else None.
        slots: name of the set of slots that holds the keys; "" is the one that the vault was created with.
    """

    id: str
    keystore: str
    simulated: bool
    kdf: dict[str, Any] | None
    slots: str = ""
    format: int = FORMAT

    def encode(self) -> bytes:
        """The file's bytes."""
        return canonical_json({name: fact for name, fact in asdict(self).items() if fact != ""})


def new_facts(vault_id: str, keystore: str, simulated: bool, slots: str = "") -> Header:
    """Facts of a vault to be created, or whose keys move. Raises UsageError for an unknown backend."""
    if keystore not in BACKENDS:
        raise UsageError(f"There is no such keystore. Choose one of {', '.join(BACKENDS)}.")
    kdf = {"name": "argon2id", "salt": secrets.token_hex(16), **ARGON2ID} if keystore == "passphrase" else None
    return Header(vault_id, keystore, simulated, kdf, slots)


def read_facts(files: Files, root: Path) -> tuple[Header, bytes]:
    """The facts of the vault at `root` and their bytes.

    Raises:
        NothingMatched: no vault here. VersionMismatch: another format. VerificationFailed: damaged.
    """
    if not (root / NAME).is_file():
        raise NothingMatched(f"There is no vault at {root}. Create one, or give the right folder.")
    data = files.read(root / NAME)
    return decode(data), data


def keep_copy(files: Files, facts: Header) -> None:
    """Keep a copy beside the key slots, for a vault that loses its header (`fedmem vault repair`)."""
    folder = paths.slots_dir() / facts.id
    files.make_folder(folder)
    files.replace(folder / NAME, facts.encode())


def decode(data: bytes) -> Header:
    """The facts that `Facts.encode` wrote. Raises VersionMismatch, VerificationFailed."""
    try:
        known = json.loads(data)
        if known["format"] != FORMAT:
            raise VersionMismatch("This vault has a format that this fedmem does not read. Update fedmem.")
        facts = Header(**known)
        _check(facts)
    except (ValueError, TypeError, KeyError):
        raise VerificationFailed("The vault's public facts are damaged. Restore vault.json from a backup.") from None
    return facts


def _check(facts: Header) -> None:
    kdf = None if facts.keystore != "passphrase" else {"name": "argon2id", **ARGON2ID}
    given = None if facts.kdf is None else {name: facts.kdf[name] for name in facts.kdf if name != "salt"}
    # Parameters from a file are never obeyed: weaker or gigantic ones are damage.
    if facts.keystore not in BACKENDS or given != kdf or type(facts.simulated) is not bool:
        raise ValueError
    if facts.slots and len(bytes.fromhex(facts.slots)) != 8:  # it becomes the name of a folder
        raise ValueError
    if len(bytes.fromhex(facts.id)) != 16 or (facts.kdf and len(bytes.fromhex(facts.kdf["salt"])) != 16):
        raise ValueError


def start_keystore(facts: Header, files: Files, slots: Path, ask: Ask | None) -> Keystore:
    """The keystore of a new vault; `slots` is the folder of all its sets of slots."""
    if facts.keystore == "passphrase":
        return PassphraseKeys.start(_slots(facts, files, slots), _asked(ask), _salt(facts))
    return bare_keystore(facts, files, slots)


def open_keystore(facts: Header, files: Files, slots: Path, ask: Ask | None) -> Keystore:
    """The keystore of an existing vault; the backend that its facts name and no other."""
    if facts.keystore == "passphrase":
        return PassphraseKeys.resume(_slots(facts, files, slots), _asked(ask), _salt(facts))
    return bare_keystore(facts, files, slots)


def bare_keystore(facts: Header, files: Files, slots: Path) -> Keystore:
    """The keystore without a passphrase: enough to read notes and to discard everything."""
    if facts.keystore == "keyring":
        return KeyringKeys(f"fedmem:{facts.id}" + (f":{facts.slots}" if facts.slots else ""))
    return _slots(facts, files, slots)


def _slots(facts: Header, files: Files, slots: Path) -> KeyfileKeys:
    return KeyfileKeys(files, slots / facts.slots if facts.slots else slots)


def passphrase(ask: Ask | None) -> Ask:
    """Ask for a new passphrase now; it is given again as often as needed. Raises KeystoreError for an empty one."""
    given = _asked(ask)
    if not given:
        raise KeystoreError("An empty passphrase protects nothing. Choose one, or use the keyfile keystore.")
    return lambda: given


def _asked(ask: Ask | None) -> str:
    if ask is None:
        raise KeystoreError("This vault opens with a passphrase. Run the command on a terminal, or pass `ask`.")
    return ask()


def _salt(facts: Header) -> bytes:
    return bytes.fromhex((facts.kdf or {})["salt"])
