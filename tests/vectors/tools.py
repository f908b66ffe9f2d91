"""What the makers of vectors share: keys, classes of failure, and a second writer of containers."""

import base64
import struct
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from fedmem.storage.canonical import digest

PREFIX = struct.Struct(">4sHIQ")
MAGIC, CHUNK = b"FMB\x00", 16384
KEY, OTHER_KEY = bytes(range(32)), bytes(32)
VAULT, OTHER_VAULT = "00112233445566778899aabbccddeeff", "ff" * 16
IDENTITY = f"block/{VAULT}/b1"
OK, BAD, CORRUPT, CUT, WRONG = "ok", "VerificationFailed", "ContainerCorrupt", "TruncatedContainer", "WrongKey"
Vectors = dict[str, dict[str, Any]]


def plain(value: Any) -> Any:
    """`value` with bytes as base64."""
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list) else value


def flip(data: bytes, at: int, mask: int = 1) -> bytes:
    """`data` with bits of one byte changed."""
    changed = bytearray(data)
    changed[at] ^= mask
    return bytes(changed)


def sealed(salt: str, public: bytes, payload: bytes, *, key: bytes = KEY, identity: str = IDENTITY) -> bytes:
    """A container, as C2SP's chunked encryption (Cobblestone-256) and docs/design.md, §8 describe it.

    `salt` names 24 bytes.
    """
    length = 24 + 32 + len(payload) + 16 * (len(payload) // CHUNK + 1)
    prefix = PREFIX.pack(MAGIC, 1, len(public), length) + public
    drawn = bytes.fromhex(SALTS[salt]) if salt in SALTS else bytes.fromhex(digest(salt.encode()))[:24]
    info = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00" + drawn + prefix + identity.encode()
    derived = HKDFExpand(SHA512(), 32 + 12 + 32, info).derive(key)
    body = b""
    for number in range(len(payload) // CHUNK + 1):
        nonce = (int.from_bytes(derived[32:44], "big") ^ number).to_bytes(12, "big")
        body += AESGCM(derived[:32]).encrypt(nonce, payload[number * CHUNK : (number + 1) * CHUNK], b"")
    return prefix + drawn + derived[44:] + body


# Drawn at random when the first vectors of format 1 were made.
SALTS = {
    "long": "7b7442032a034a61fad21826c42e39e1ec3cca9c3137c838",
    "edge": "1947139a7e78e16f8396ea77dae36c8d250001ae63b4d119",
    "good": "9d93ca14d94433cfa96d3d6641a2c0cd41d2248c341299bf",
    "empty": "c4db2c22643afb3c79dd744b52bf1e45b9cef2d237dfb3c2",
}
