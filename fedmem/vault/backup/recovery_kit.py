"""The file and the code of a recovery kit: their formats, and opening them.

Invariants
- The file holds the kit's private key, sealed under the code of 256 random bits. The file alone opens nothing, and
  neither does the code. Both have a checksum, so a mistyped letter is detected at once.
- A kit does not hold the device key, so nobody can sign a receipt with it. The device key in a kit of an earlier fedmem
  is not used.
- The kit's private key opens the vault: the public header of the key table holds the epoch key, sealed to this key.

Guarantees
    HKDF-SHA-512 (RFC 5869) derives the sealing key from the code. The code has full entropy, so stretching it with
    Argon2id would add no security. The kit's key pair is X25519 under HPKE (RFC 9180); see `hpke`.

    | input | result |
    |---|---|
    | a mistyped code: wrong checksum | KeystoreError |
    | another kit's code | KeystoreError |
    | a damaged kit file: wrong checksum | VerificationFailed |
    | a kit to which the table is no longer sealed | VerificationFailed |
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
from fedmem.vault.crypto import container, hpke
from fedmem.vault.crypto.keystore import Keystore
from fedmem.vault.crypto.sealed_table import numbers_of

SCHEMA = "fedmem.recovery-kit/2"
SCHEMAS = ("fedmem.recovery-kit/1", SCHEMA)
CODE_BYTES, CHECK_BYTES = 32, 3
LIMIT = 1 << 16  # bytes that are read of a kit's file; a kit is much smaller
_CODE_LETTERS = str.maketrans("018", "OIB", " -\t\r\n")  # 0, 1 and 8 mean O, I and B; blanks and dashes are ignored


@dataclass(frozen=True)
class Kit:
    """An opened recovery kit.

    Attributes:
        id, vault: ids of the kit and of its vault, 32 hex digits.
        created: time of creation, ISO 8601 in UTC.
        key: the kit's private key.
    """

    id: str
    vault: str
    created: str
    key: X25519PrivateKey = field(repr=False)

    def key_of(self, table: bytes) -> bytes:
        """Return the key under which a key table of this vault is sealed.

        Args:
            table: the content of the table's file.

        Raises:
            Refused: the table of another vault. VerificationFailed: the kit was retired, or the table is damaged.
        """
        header = container.read_header(table)[0]
        numbers_of(header)
        if header.get("vault") != self.vault:
            raise Refused("This recovery kit belongs to another vault. Use the kit that was made for this one.")
        kits = header.get("kits")  # public and not verified, so it may have any type
        sealed = kits.get(self.id) if isinstance(kits, dict) else None
        if sealed is None:
            raise VerificationFailed(
                "This recovery kit was retired by an erasure or a rotation of keys after it was made, and opens "
                "nothing of the vault any more. Destroy it, and make a new one with `fedmem keys recovery create`."
            )
        return hpke.open_with(self.key, sealed, identity=f"{self.vault}/{self.id}")


class KitKeys:
    """A keystore in memory with the keys of a kit, and with the notes of the lost keystore if they still exist."""

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
        """Do nothing: this keystore ends with the process."""

    def noted(self, name: str) -> bytes | None:
        return None if self._notes is None else self._notes.noted(name)

    def discard(self, names: Iterable[str]) -> None:
        self._keys.clear()


def encode(vault_id: str, kit_id: str, code: bytes, key: X25519PrivateKey) -> bytes:
    """Return the content of a new kit file.

    Guarantees
        The key is sealed under the code. The ids and the time of creation are public.

    Args:
        code: 32 new random bytes.
        key: the private key of a new key pair.
    """
    created = datetime.now(UTC).isoformat(timespec="seconds")
    fields = {"schema": SCHEMA, "id": kit_id, "vault": vault_id, "created": created}
    plain = canonical_json({"key": key.private_bytes_raw().hex()})
    sealed = container.seal_cell(_sealing_key(code, fields), plain, identity=_identity(fields))
    content = {**fields, "sealed": base64.b64encode(sealed).decode()}
    return json.dumps({**content, "checksum": digest(content)}, indent=1).encode() + b"\n"


def open_kit(file: bytes, code: str) -> Kit:
    """Open a kit file with its code.

    Guarantees
        The key is the one that `encode` was given with this code. The module's table lists the edge cases.

    Args:
        file: the content of the kit's file.
        code: the code as `spell` wrote it.

    Raises:
        KeystoreError: a mistyped code, or the code of another kit. VerificationFailed: a damaged file.
        VersionMismatch: another format.
    """
    fields = _parse(file)
    secret = read_code(code)
    try:
        sealing_key = _sealing_key(secret, fields)
        plain = container.open_cell(sealing_key, base64.b64decode(fields["sealed"]), identity=_identity(fields))
    except container.WrongKey:
        raise KeystoreError("This code does not open this recovery kit. Use the code that was shown with it.") from None
    keys = json.loads(plain)
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(keys["key"]))
    return Kit(fields["id"], fields["vault"], fields["created"], private)


def spell(code: bytes) -> str:
    """Return a code of 32 bytes, with its checksum, as 14 groups of four letters and digits.

    Args:
        code: 32 random bytes.

    Returns:
        69 characters: the code and three bytes of checksum in base32, with dashes.
    """
    text = base64.b32encode(code + hashlib.sha256(code).digest()[:CHECK_BYTES]).decode()
    return "-".join(text[i : i + 4] for i in range(0, len(text), 4))


def read_code(text: str) -> bytes:
    """Return the 32 bytes of a code that `spell` wrote.

    Upper and lower case are equal, blanks and dashes are ignored, and 0, 1 and 8 are read as O, I and B.

    Args:
        text: the code as a person typed it.

    Raises:
        KeystoreError: the checksum or the length is wrong.
    """
    try:
        data = base64.b32decode(text.upper().translate(_CODE_LETTERS))
    except ValueError:
        data = b""
    code, checksum = data[:CODE_BYTES], data[CODE_BYTES:]
    if len(checksum) != CHECK_BYTES or not hmac.compare_digest(checksum, hashlib.sha256(code).digest()[:CHECK_BYTES]):
        raise KeystoreError("This is not a recovery code, or it is mistyped: it has 14 groups of four. Type it again.")
    return code


def _parse(file: bytes) -> dict[str, str]:
    try:
        fields = json.loads(file[:LIMIT])
        checksum = fields.pop("checksum")
        is_complete = all(isinstance(fields[name], str) for name in ("schema", "id", "vault", "created", "sealed"))
        if not is_complete or not hmac.compare_digest(str(checksum), digest(fields)):
            raise ValueError
        base64.b64decode(fields["sealed"], validate=True)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise VerificationFailed("This is not a recovery kit, or it was damaged. Use another copy of it.") from None
    if fields["schema"] not in SCHEMAS:
        raise VersionMismatch("This recovery kit has a format that this fedmem does not read. Update fedmem.")
    typed_fields: dict[str, str] = fields
    return typed_fields


def _sealing_key(code: bytes, fields: dict[str, str]) -> bytes:
    return HKDF(SHA512(), 32, salt=None, info=b"fedmem/recovery/1\x00" + _identity(fields).encode()).derive(code)


def _identity(fields: dict[str, str]) -> str:
    return f"recovery/{fields['vault']}/{fields['id']}/{fields['created']}"
