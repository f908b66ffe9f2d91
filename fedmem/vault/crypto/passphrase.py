"""The passphrase keystore: secrets derived from a passphrase and from slot files. Each alone opens nothing.

Invariants
- A secret that the keystore creates is HKDF(Argon2id(passphrase) || slot). Destroying the secret destroys its slot.
- A secret that a caller gives (`put`) lies in its slot, sealed under a key that is derived in the same way.
- The check value lies with the slots and not in the vault. So a thief of the vault alone cannot test passphrases.

Guarantees
    Argon2id with RFC 9106's second recommended parameters (t=3, p=4, 64 MiB); HKDF-SHA-512 (RFC 5869).

    | case | result |
    |---|---|
    | wrong passphrase | KeystoreError before any container is opened |
    | empty passphrase | KeystoreError at creation |
    | damaged slot | KeystoreError, or a key that opens nothing |
"""

import hmac
import secrets
from collections.abc import Iterable

from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedmem.errors import KeystoreError, VerificationFailed
from fedmem.vault.crypto.container import open_cell, seal_cell
from fedmem.vault.crypto.keystore import SECRET_BYTES, KeyfileKeys, missing

MEMORY_KIB = 64 * 1024
ARGON2ID = {"iterations": 3, "lanes": 4, "memory_cost": MEMORY_KIB}


class PassphraseKeys:
    """A keystore whose secrets are derived from a passphrase and a slot file; both are needed.

    Args:
        slots: the keystore of the slot files.
        master: 32 bytes, the result of `stretch`.
    """

    def __init__(self, slots: KeyfileKeys, master: bytes) -> None:
        self._slots = slots
        self._master = master

    @classmethod
    def start(cls, slots: KeyfileKeys, passphrase: str, salt: bytes) -> "PassphraseKeys":
        """Create the keystore of a new vault, and store its check value.

        Args:
            passphrase: not empty.
            salt: 16 random bytes.

        Raises:
            KeystoreError: the passphrase is empty. StorageError: a slot cannot be written.
        """
        if not passphrase:
            raise KeystoreError("An empty passphrase protects nothing. Choose one, or use the keyfile keystore.")
        keys = cls(slots, stretch(passphrase, salt))
        slots.put("check-value", keys.create("check"))
        return keys

    @classmethod
    def resume(cls, slots: KeyfileKeys, passphrase: str, salt: bytes) -> "PassphraseKeys":
        """Open the keystore of an existing vault.

        Args:
            salt: the 16 bytes that `start` was given.

        Raises:
            KeystoreError: the passphrase is wrong, or a slot is missing. StorageError: a slot cannot be read.
        """
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
        slot = self._slots.slot(name)
        if len(slot) <= SECRET_BYTES:
            return self._derive(name, self._slots.load(name))
        try:
            return bytes(open_cell(self._wrapping_key(name, slot), slot[SECRET_BYTES:], identity=f"slot/{name}"))
        except VerificationFailed:
            raise missing(name) from None  # a damaged slot is treated as missing

    def put(self, name: str, secret: bytes) -> None:
        slot = secrets.token_bytes(SECRET_BYTES)
        self._slots.put(name, slot + seal_cell(self._wrapping_key(name, slot), secret, identity=f"slot/{name}"))

    def destroy(self, name: str) -> None:
        self._slots.destroy(name)

    def note(self, name: str, value: bytes) -> None:
        self._slots.note(name, value)

    def noted(self, name: str) -> bytes | None:
        return self._slots.noted(name)

    def discard(self, names: Iterable[str] = ()) -> None:
        self._slots.discard(names)

    def _wrapping_key(self, name: str, slot: bytes) -> bytes:
        """Return the key that seals a given secret in its slot."""
        return self._derive(f"cover of {name}", slot[:SECRET_BYTES])

    def _derive(self, name: str, slot: bytes) -> bytes:
        return HKDF(SHA512(), SECRET_BYTES, salt=None, info=b"fedmem/slot/1\x00" + name.encode()).derive(
            self._master + slot
        )


def stretch(passphrase: str, salt: bytes) -> bytes:
    """Return 32 bytes derived from a passphrase by Argon2id.

    Guarantees
        The second recommended parameters of RFC 9106: t=3, p=4, 64 MiB. One call takes about 0.1 s and 64 MiB.

    Args:
        salt: 16 random bytes.
    """
    return Argon2id(salt=salt, length=SECRET_BYTES, iterations=3, lanes=4, memory_cost=MEMORY_KIB).derive(
        passphrase.encode()
    )
