"""A secret sealed to a public key: how a recovery kit gets each new epoch key without being at hand.

Invariants
- Who seals needs the public key only, so a rotation goes on without the kit and its code.
- A sealed secret is bound to its identity: it opens for no other vault and no other kit.

Guarantees
    HPKE (RFC 9180), base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM; a fresh ephemeral key each time.

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
    """The public key, hex."""
    return key.public_key().public_bytes_raw().hex()


def seal_to(public: str, secret: bytes, *, identity: str) -> str:
    """`secret` sealed to a public key (hex), as hex."""
    key = X25519PublicKey.from_public_bytes(bytes.fromhex(public))
    return _SUITE.encrypt(secret, key, info=(_INFO + identity).encode()).hex()


def open_with(key: X25519PrivateKey, sealed: str, *, identity: str) -> bytes:
    """What `seal_to` was given. Raises VerificationFailed."""
    try:
        return _SUITE.decrypt(bytes.fromhex(sealed), key, info=(_INFO + identity).encode())
    except (InvalidTag, ValueError, TypeError):
        raise VerificationFailed("The vault's entry for this recovery kit is damaged. Make a new kit.") from None
