"""Seal a secret to a public key with HPKE. Each new epoch key is sealed to the recovery kits in this way.

Invariants
- Sealing needs the public key only. So a rotation of keys needs neither the kit nor its code.
- A sealed secret is bound to its identity: it opens for no other vault and no other kit.

Guarantees
    HPKE (RFC 9180), base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM; a new ephemeral key each time.

    | input | result |
    |---|---|
    | another private key or identity, a changed byte | VerificationFailed |
    | not hex, too short | VerificationFailed |

>>> key = X25519PrivateKey.generate()
>>> open_with(key, seal_to(public_of(key), b"secret", identity="v/k"), identity="v/k")
b'secret'
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from fedmem.errors import VerificationFailed

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_INFO = "fedmem/recipient/1\x00"


def public_of(key: X25519PrivateKey) -> str:
    """Return the public key of a private key.

    Args:
        key: an X25519 private key.

    Returns:
        64 hex digits.
    """
    return key.public_key().public_bytes_raw().hex()


def seal_to(public: str, secret: bytes, *, identity: str) -> str:
    """Seal a secret to a public key and return it as hex.

    Guarantees
        Only the private key opens it, and only with the same `identity` (HPKE, see the module).

    Args:
        public: the public key, 64 hex digits.
        secret: the bytes to seal.
        identity: vault and kit; `open_with` needs the same one.

    Raises:
        ValueError: `public` is no X25519 public key.
    """
    key = X25519PublicKey.from_public_bytes(bytes.fromhex(public))
    return _SUITE.encrypt(secret, key, info=(_INFO + identity).encode()).hex()


def open_with(key: X25519PrivateKey, sealed: str, *, identity: str) -> bytes:
    """Open a sealed secret and return it.

    Guarantees
        A result is exactly what `seal_to` was given for this key and identity. The module's table lists edge cases.

    Args:
        key: the private key.
        sealed: hex, as `seal_to` returns it.
        identity: the one that sealed it.

    Raises:
        VerificationFailed: another key or identity, or the sealed text was changed.
    """
    try:
        return _SUITE.decrypt(bytes.fromhex(sealed), key, info=(_INFO + identity).encode())
    except (InvalidTag, ValueError, TypeError):
        raise VerificationFailed("The vault's entry for this recovery kit is damaged. Make a new kit.") from None
