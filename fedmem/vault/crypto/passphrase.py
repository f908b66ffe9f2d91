"""Keys behind a passphrase: secrets derived from it and from slot files, neither of which opens anything alone.

Invariants
- Each secret is HKDF(Argon2id(passphrase) || slot), and the slot is destroyed with the secret.
- A secret that came from elsewhere (`put`) lies in its slot sealed under such a derived key.
- The check value lies with the slots, not in the vault: who copies the vault alone cannot try passphrases.

Guarantees
    Argon2id with RFC 9106's second recommended parameters (t=3, p=4, 64 MiB); HKDF-SHA-512 (RFC 5869).

    | case | result |
    |---|---|
    | wrong passphrase | KeystoreError before any container is touched |
    | empty passphrase | KeystoreError at creation |
    | a slot that is damaged | KeystoreError, or a key that opens nothing |
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
        slot = self._slots.slot(name)
        if len(slot) <= SECRET_BYTES:
            return self._derive(name, self._slots.load(name))
        try:
            return open_cell(self._cover(name, slot), slot[SECRET_BYTES:], identity=f"slot/{name}")
        except VerificationFailed:
            raise missing(name) from None  # damaged is as good as gone

    def put(self, name: str, secret: bytes) -> None:
        slot = secrets.token_bytes(SECRET_BYTES)
        self._slots.put(name, slot + seal_cell(self._cover(name, slot), secret, identity=f"slot/{name}"))

    def destroy(self, name: str) -> None:
        self._slots.destroy(name)

    def note(self, name: str, value: bytes) -> None:
        self._slots.note(name, value)

    def noted(self, name: str) -> bytes | None:
        return self._slots.noted(name)

    def discard(self, names: Iterable[str] = ()) -> None:
        self._slots.discard(names)

    def _cover(self, name: str, slot: bytes) -> bytes:
        """The key under which a secret from elsewhere lies in its slot."""
        return self._derive(f"cover of {name}", slot[:SECRET_BYTES])

    def _derive(self, name: str, slot: bytes) -> bytes:
        return HKDF(SHA512(), SECRET_BYTES, salt=None, info=b"fedmem/slot/1\x00" + name.encode()).derive(
            self._master + slot
        )


def stretch(passphrase: str, salt: bytes) -> bytes:
    """Argon2id(passphrase, salt), 32 bytes, RFC 9106 second choice; about 0.1 s and 64 MiB."""
    return Argon2id(salt=salt, length=SECRET_BYTES, iterations=3, lanes=4, memory_cost=MEMORY_KIB).derive(
        passphrase.encode()
    )
