"""`vault.json`: the public facts of a vault, written once, last of all its files.

Invariants
- It holds public facts only: format, random id, keystore backend, simulated mark, KDF parameters.
- Its digest is sealed in the key table, so a changed mark or backend does not open.
- A folder without it is no vault; a creation that was cut leaves none.
"""

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedmem.canonical import canonical_json
from fedmem.errors import KeystoreError, NothingMatched, UsageError, VerificationFailed, VersionMismatch
from fedmem.vault.fs import Files
from fedmem.vault.keys import ARGON2ID, Ask, KeyfileKeys, KeyringKeys, Keystore, PassphraseKeys

NAME = "vault.json"
FORMAT = 1
BACKENDS = ("keyfile", "passphrase", "keyring")


@dataclass(frozen=True)
class Facts:
    """Public facts of one vault.

    Attributes:
        keystore: keyfile, passphrase or keyring.
        simulated: whether its keys may come from a seed; for ever.
        kdf: Argon2id parameters and salt (hex) in passphrase mode, else None.
    """

    id: str
    keystore: str
    simulated: bool
    kdf: dict[str, Any] | None
    format: int = FORMAT

    def encode(self) -> bytes:
        """The file's bytes."""
        return canonical_json(asdict(self))


def new_facts(vault_id: str, keystore: str, simulated: bool) -> Facts:
    """Facts of a vault to be created. Raises UsageError for an unknown backend."""
    if keystore not in BACKENDS:
        raise UsageError(f"There is no such keystore. Choose one of {', '.join(BACKENDS)}.")
    kdf = {"name": "argon2id", "salt": secrets.token_hex(16), **ARGON2ID} if keystore == "passphrase" else None
    return Facts(vault_id, keystore, simulated, kdf)


def read_facts(files: Files, root: Path) -> tuple[Facts, bytes]:
    """The facts of the vault at `root` and their bytes.

    Raises:
        NothingMatched: no vault here. VersionMismatch: another format. VerificationFailed: damaged.
    """
    if not (root / NAME).is_file():
        raise NothingMatched(f"There is no vault at {root}. Create one, or give the right folder.")
    data = files.read(root / NAME)
    try:
        known = json.loads(data)
        if known["format"] != FORMAT:
            raise VersionMismatch("This vault has a format that this fedmem does not read. Update fedmem.")
        facts = Facts(**known)
        _check(facts)
    except (ValueError, TypeError, KeyError):
        raise VerificationFailed("The vault's public facts are damaged. Restore vault.json from a backup.") from None
    return facts, data


def _check(facts: Facts) -> None:
    kdf = None if facts.keystore != "passphrase" else {"name": "argon2id", **ARGON2ID}
    given = None if facts.kdf is None else {name: facts.kdf[name] for name in facts.kdf if name != "salt"}
    # Parameters from a file are never obeyed: weaker or gigantic ones are damage.
    if facts.keystore not in BACKENDS or given != kdf or type(facts.simulated) is not bool:
        raise ValueError
    if len(bytes.fromhex(facts.id)) != 16 or (facts.kdf and len(bytes.fromhex(facts.kdf["salt"])) != 16):
        raise ValueError


def start_keystore(facts: Facts, files: Files, slots: Path, ask: Ask | None) -> Keystore:
    """The keystore of a new vault."""
    if facts.keystore == "passphrase":
        return PassphraseKeys.start(KeyfileKeys(files, slots), _asked(ask), _salt(facts))
    return _plain(facts, files, slots)


def open_keystore(facts: Facts, files: Files, slots: Path, ask: Ask | None) -> Keystore:
    """The keystore of an existing vault; the backend that its facts name and no other."""
    if facts.keystore == "passphrase":
        return PassphraseKeys.resume(KeyfileKeys(files, slots), _asked(ask), _salt(facts))
    return _plain(facts, files, slots)


def _plain(facts: Facts, files: Files, slots: Path) -> Keystore:
    return KeyringKeys(f"fedmem:{facts.id}") if facts.keystore == "keyring" else KeyfileKeys(files, slots)


def _asked(ask: Ask | None) -> str:
    if ask is None:
        raise KeystoreError("This vault opens with a passphrase. Run the command on a terminal, or pass `ask`.")
    return ask()


def _salt(facts: Facts) -> bytes:
    return bytes.fromhex((facts.kdf or {})["salt"])
