"""A recovery kit's file and code, and what they hold.

Invariants
- The file holds the device key and the kit's private key, sealed under a code of 256 random bits; neither alone opens
  anything. The code has a checksum, so that a mistyped letter is told at once; the file has one too.
- What opens a vault is the kit's private key, to which the epoch key is sealed in the key table's public header.

Guarantees
    HKDF-SHA-512 (RFC 5869) makes the sealing key from the code: it has full entropy, so nothing is gained by stretching
    it with Argon2id. The kit's key pair is X25519 under HPKE (RFC 9180); see `recipients`.

    | input | result |
    |---|---|
    | a mistyped code: its checksum does not hold | KeystoreError |
    | another kit's code | KeystoreError |
    | a damaged kit file: its checksum does not hold | VerificationFailed |
    | a kit that the table is not sealed to any more | VerificationFailed |
    | a kit of another vault | Refused |

>>> read_code(spell(bytes(32))) == bytes(32)
True
"""

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedmem.errors import KeystoreError, Refused, VerificationFailed, VersionMismatch
from fedmem.storage.canonical import canonical_json, digest
from fedmem.vault.crypto import container
from fedmem.vault.crypto import hpke as recipients
from fedmem.vault.crypto.key_table import numbers_of
from fedmem.vault.crypto.keystore import Keystore

SCHEMA = "fedmem.recovery-kit/1"
CODE_BYTES, CHECK_BYTES = 32, 3
LIMIT = 1 << 16  # bytes of a kit's file; none is near it
_ALIKE = str.maketrans("018", "OIB", " -\t\r\n")  # what is read for what, and what is left out


@dataclass(frozen=True)
class Kit:
    """An opened kit."""

    id: str
    vault: str
    created: str
    key: X25519PrivateKey = field(repr=False)
    device: bytes = field(repr=False)

    def key_of(self, table: bytes) -> bytes:
        """The key under which a table of this vault is sealed. Raises Refused, VerificationFailed."""
        header = container.read_header(table)[0]
        numbers_of(header)
        if header.get("vault") != self.vault:
            raise Refused("This recovery kit belongs to another vault. Use the kit that was made for this one.")
        kits = header.get("kits")  # public, so it may be anything
        sealed = kits.get(self.id) if isinstance(kits, dict) else None
        if sealed is None:
            raise VerificationFailed(
                "This recovery kit was retired by an erasure or a rotation of keys after it was made, and opens "
                "nothing of the vault any more. Destroy it, and make a new one with `fedmem keys recovery create`."
            )
        return recipients.open_with(self.key, sealed, identity=f"{self.vault}/{self.id}")


class GivenKeys:
    """A keystore in memory: the keys that a kit gave, and the notes of the lost keystore where they are left."""

    def __init__(self, keys: dict[str, bytes], notes: Keystore | None) -> None:
        self._keys, self._notes = keys, notes

    def exists(self, name: str) -> bool:
        return name in self._keys

    def create(self, name: str) -> bytes:
        self.put(name, secrets.token_bytes(CODE_BYTES))
        return self.load(name)

    def load(self, name: str) -> bytes:
        if name not in self._keys:
            raise KeystoreError("The recovery kit does not hold a key that the vault needs. Try a newer kit.")
        return self._keys[name]

    def put(self, name: str, secret: bytes) -> None:
        self._keys[name] = secret

    def destroy(self, name: str) -> None:
        self._keys.pop(name, None)

    def note(self, name: str, value: bytes) -> None:
        """Nothing: these keys are gone with the process."""

    def noted(self, name: str) -> bytes | None:
        return None if self._notes is None else self._notes.noted(name)

    def discard(self, names: Iterable[str]) -> None:
        self._keys.clear()


def encode(vault_id: str, kit: str, code: bytes, key: X25519PrivateKey, device: bytes) -> bytes:
    """The kit file of a vault, for a fresh code, a fresh key pair and its device key."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    known = {"schema": SCHEMA, "id": kit, "vault": vault_id, "created": created}
    plain = canonical_json({"key": key.private_bytes_raw().hex(), "device": device.hex()})
    sealed = container.seal_cell(_sealing_key(code, known), plain, identity=_of(known))
    whole = {**known, "sealed": base64.b64encode(sealed).decode()}
    return json.dumps({**whole, "checksum": digest(whole)}, indent=1).encode() + b"\n"


def opened(file: bytes, code: str) -> Kit:
    """Open a kit file with its code. Raises KeystoreError, VerificationFailed, VersionMismatch."""
    known = _parsed(file)
    secret = read_code(code)
    try:
        plain = container.open_cell(_sealing_key(secret, known), base64.b64decode(known["sealed"]), identity=_of(known))
    except container.WrongKey:
        raise KeystoreError("This code does not open this recovery kit. Use the code that was shown with it.") from None
    keys = json.loads(plain)
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(keys["key"]))
    return Kit(known["id"], known["vault"], known["created"], private, bytes.fromhex(keys["device"]))


def spell(code: bytes) -> str:
    """A code of 32 bytes as 14 groups of four letters and digits, its checksum included."""
    text = base64.b32encode(code + hashlib.sha256(code).digest()[:CHECK_BYTES]).decode()
    return "-".join(text[i : i + 4] for i in range(0, len(text), 4))


def read_code(text: str) -> bytes:
    """The code that `spell` wrote; case, blanks and dashes do not count, nor 0 for O, 1 for I, 8 for B.

    Raises KeystoreError where the checksum does not hold.
    """
    try:
        data = base64.b32decode(text.upper().translate(_ALIKE))
    except ValueError:
        data = b""
    code, check = data[:CODE_BYTES], data[CODE_BYTES:]
    if len(check) != CHECK_BYTES or not hmac.compare_digest(check, hashlib.sha256(code).digest()[:CHECK_BYTES]):
        raise KeystoreError("This is not a recovery code, or it is mistyped: it has 14 groups of four. Type it again.")
    return code


def _parsed(file: bytes) -> dict[str, str]:
    try:
        known = json.loads(file[:LIMIT])
        checksum = known.pop("checksum")
        whole = all(isinstance(known[name], str) for name in ("schema", "id", "vault", "created", "sealed"))
        if not whole or not hmac.compare_digest(str(checksum), digest(known)):
            raise ValueError
        base64.b64decode(known["sealed"], validate=True)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise VerificationFailed("This is not a recovery kit, or it was damaged. Use another copy of it.") from None
    if known["schema"] != SCHEMA:
        raise VersionMismatch("This recovery kit has a format that this fedmem does not read. Update fedmem.")
    found: dict[str, str] = known
    return found


def _sealing_key(code: bytes, known: dict[str, str]) -> bytes:
    return HKDF(SHA512(), 32, salt=None, info=b"fedmem/recovery/1\x00" + _of(known).encode()).derive(code)


def _of(known: dict[str, str]) -> str:
    return f"recovery/{known['vault']}/{known['id']}/{known['created']}"
