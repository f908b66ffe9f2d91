"""The device key, which signs receipts: its public key, and what becomes of it when the keystore is lost.

Invariants
- The secret is in the keystore only. Neither a recovery kit nor a backup carries it.
- A vault whose keystore was lost gets a new device key. The earlier public key is kept in `receipts/`, named by its
  fingerprint, and stands in the sealed facts. So each later receipt can name it, and old receipts still verify.

    change(files, root, public_pem(seed))
    earlier_keys(table.facts)             # fingerprints
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from fedmem.errors import VerificationFailed
from fedmem.storage.files import Files

DEVICE_KEY = "device"
NAME = "device.pub"
SUFFIX = ".pub"
EARLIER = "device_keys"
"""The name of the sealed fact that lists the fingerprints of earlier device keys, oldest first."""


def public_pem(seed: bytes) -> bytes:
    """Return the public key of a device as PEM, the content of `device.pub`.

    Args:
        seed: the device key, 32 bytes: an Ed25519 private key.
    """
    key = Ed25519PrivateKey.from_private_bytes(seed).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def fingerprint(pem: bytes) -> str:
    """Return the SHA-256, hex, of a public key's DER (SubjectPublicKeyInfo).

    Guarantees
        Two files have the same fingerprint only if they hold the same key (SHA-256 is collision resistant).

    Args:
        pem: the public key, PEM.

    Raises:
        VerificationFailed: it is no public key in PEM.
    """
    try:
        key = load_pem_public_key(pem)
    except (UnsupportedAlgorithm, ValueError, TypeError):
        raise VerificationFailed("The file of the device's public key is damaged. Restore device.pub.") from None
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def earlier_keys(facts: Mapping[str, Any]) -> list[str]:
    """Return the fingerprints of the earlier device keys of a vault, oldest first.

    Args:
        facts: sealed facts of the key table.

    Returns:
        SHA-256 fingerprints, hex; empty if the device key never changed.
    """
    return [str(key) for key in facts.get(EARLIER, ())]


def change(files: Files, root: Path, pem: bytes) -> None:
    """Make `pem` the public key of the vault at `root`, and keep the earlier one in `receipts/`.

    Args:
        files: the file layer.
        root: the vault's folder.
        pem: the new public key, PEM. The present one gives no change.

    Raises:
        StorageError: a file could not be written. Calling it again completes the change.
    """
    earlier = files.read(root / NAME)
    if earlier != pem:
        files.replace(root / "receipts" / f"{fingerprint(earlier)}{SUFFIX}", earlier)
        files.replace(root / NAME, pem)
