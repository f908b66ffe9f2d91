"""Signed receipts: an in-toto Statement v1 in a DSSE envelope, Ed25519, checkable with the file and the public key.

Invariants
- A receipt names items by random ids and digests of ciphertext; the scope is a salted commitment.
- It is signed by the device key, which no erasure destroys, and names the receipt before it by digest.
- What an erasure cannot reach is listed under `not_covered`; the word is crypto-erased, never wiped.

Guarantees
    DSSE v1 pre-authentication encoding over the exact payload bytes, Ed25519 (RFC 8032). `verify` accepts one
    signature by the given key over our statement and predicate types, and nothing else.

    | input | result |
    |---|---|
    | a changed byte, another key, no signature, two signatures | VerificationFailed |
    | not JSON, not an envelope, another payload or predicate type | VerificationFailed |
    | more than 64 MiB | VerificationFailed before parsing |
"""

import hashlib
import hmac
import json
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error as SigningError
from securesystemslib.signer import CryptoSigner, SSlibKey  # type: ignore[attr-defined]  # it has no __all__

from fedmem.canonical import canonical_json
from fedmem.erasure.journal import Entry
from fedmem.erasure.planning import Scope
from fedmem.erasure.verification import FILES, Verification
from fedmem.errors import VerificationFailed
from fedmem.vault.stores import ContentStore

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:fedmem:erasure-receipt:v1"
LIMIT = 64 << 20
NOT_COVERED = [
    "file-system snapshots, cloud synchronisation and copies of the disk made before",
    "swap, hibernation images and memory of running processes",
    "cells of the storage device that it no longer addresses",
    "older copies of the key slots together with older copies of the vault",
    "exported copies and backups made by the subject",
    "what other devices hold or learned while this one was connected",
]
Statement = dict[str, Any]


def commit(scope: Scope, opening: bytes) -> str:
    """Hex commitment to a scope: HMAC-SHA256 under 32 random bytes that only the one who erased keeps."""
    return hmac.new(opening, scope.encode(), hashlib.sha256).hexdigest()


def statement(
    vault_id: str, entry: Entry, stores: list[ContentStore], checked: Verification, previous: str
) -> Statement:
    """The statement of one finished erasure. `previous` is the digest of the receipt before it, or ""."""
    subjects = [{"name": item.id, "digest": {"sha256": item.digest}} for item in entry.items if item.digest]
    kinds = sorted({(item.id, item.kind) for item in entry.items})
    predicate = {
        "wording": "crypto-erased",
        "erasure": entry.id,
        "vault": vault_id,
        "plan": entry.plan,
        "scope": {"commitment": entry.commitment, "scheme": "HMAC-SHA256(opening, canonical JSON of the scope)"},
        "generation": entry.generation + 1,
        "erased": [{"id": item, "kind": kind} for item, kind in kinds],
        "stores": _stores(entry, stores, checked),
        "executed": datetime.now(UTC).isoformat(timespec="seconds"),
        "not_covered": NOT_COVERED,
        "residual_epsilon": entry.residual,
        "previous": previous or None,
    }
    return {"_type": STATEMENT_TYPE, "subject": subjects, "predicateType": PREDICATE_TYPE, "predicate": predicate}


def sign(content: Statement, device_seed: bytes) -> bytes:
    """The receipt file: DSSE envelope of `content`, signed with the Ed25519 key of `device_seed` (32 bytes)."""
    envelope = Envelope(canonical_json(content), PAYLOAD_TYPE, {})
    envelope.sign(CryptoSigner(Ed25519PrivateKey.from_private_bytes(device_seed)))
    return canonical_json(envelope.to_dict())


def verify(file: bytes, public_key_pem: bytes) -> Statement:
    """The statement of a receipt whose signature holds. Raises VerificationFailed for anything else."""
    if len(file) > LIMIT:
        raise _refuse("It is larger than any receipt.")
    try:
        key = load_pem_public_key(public_key_pem)
        if not isinstance(key, Ed25519PublicKey):
            raise _refuse("The key is not an Ed25519 public key; give the device's device.pub.")
        envelope = Envelope.from_dict(json.loads(file))
        if len(envelope.signatures) != 1 or envelope.payload_type != PAYLOAD_TYPE:
            raise _refuse("It is not an envelope with one signature.")
        envelope.verify([SSlibKey.from_crypto(key)], 1)
        content = json.loads(envelope.payload)
    except (SigningError, UnsupportedAlgorithm, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _refuse("It was changed, or another device signed it. Ask for it, or for its key, again.") from None
    if not isinstance(content, dict) or (content.get("_type"), content.get("predicateType")) != (
        STATEMENT_TYPE,
        PREDICATE_TYPE,
    ):
        raise _refuse("What is signed is not a statement about an erasure.")
    return content


def _stores(entry: Entry, stores: list[ContentStore], checked: Verification) -> list[dict[str, Any]]:
    held = Counter(item.store for item in entry.items)
    rows = [
        {"name": store.name, "method": store.method, "items": held[store.name], "clean": not checked.found[store.name]}
        for store in stores
    ]
    return [*rows, {"name": FILES, "method": "rescan for ciphertext salts", "clean": not checked.found[FILES]}]


def _refuse(why: str) -> VerificationFailed:
    return VerificationFailed(f"The receipt does not verify. {why}")
