"""Signed receipts: an in-toto Statement v1 in a DSSE envelope, Ed25519, checkable with the file and the public key.

Invariants
- A receipt names items by random ids and digests of ciphertext; the scope is a salted commitment.
- It is signed by the device key, which no erasure destroys, and names the receipt before it by digest.
- What an erasure cannot reach is listed under `not_covered`; the word is crypto-erased, never wiped.

Guarantees
    DSSE v1 pre-authentication encoding over the exact payload bytes, Ed25519 (RFC 8032). `verify` accepts one
    signature by the given key over our statement and predicate types, and nothing else. The key id in an envelope
    is a hint that nobody signed (DSSE): it may be missing, and decides nothing.

    | input | result |
    |---|---|
    | a changed byte, another key, no signature, two signatures | VerificationFailed |
    | not JSON, not an envelope, another payload or predicate type, NaN | VerificationFailed |
    | more than 64 MiB | VerificationFailed before parsing |
    | a receipt missing, repeated or out of order in a chain | VerificationFailed that names the link |
    | the newest receipts missing from a chain | not visible in the files: compare the last digest with a known one |
    | no file at all in a chain | an empty list |

    statements = verify_chain([first, second], public_key_pem)
    opens(statements[0], Scope.block("health"), opening)
"""

import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error as SigningError
from securesystemslib.signer import CryptoSigner, SSlibKey  # type: ignore[attr-defined]  # it has no __all__

from fedmem.erasure.journal import JournalEntry
from fedmem.erasure.planning import Scope
from fedmem.erasure.verification import DEEP, Verification
from fedmem.errors import VerificationFailed
from fedmem.storage.canonical import canonical_json, digest
from fedmem.vault.store.content_stores import ContentStore

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:fedmem:erasure-receipt:v1"
SCHEME = "HMAC-SHA256(opening, canonical JSON of the scope)"
KEYID = "device"
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
    """Hex commitment to a scope: HMAC-SHA256 under 32 random bytes, its opening."""
    return hmac.new(opening, scope.encode(), hashlib.sha256).hexdigest()


def opens(content: Mapping[str, Any], scope: Scope, opening: bytes) -> bool:
    """Whether a receipt is about `scope`: its commitment opens with the 32 bytes that its erasure gave."""
    held = content["predicate"].get("scope")
    named = held.get("commitment") if isinstance(held, dict) else None
    return isinstance(named, str) and hmac.compare_digest(named.encode(), commit(scope, opening).encode())


def statement(
    vault_id: str,
    entry: JournalEntry,
    stores: list[ContentStore],
    checked: Verification,
    previous: str,
    *,
    not_covered: Sequence[str] = (),
    blocks: Sequence[Mapping[str, Any]] = (),
) -> Statement:
    """The statement of one finished erasure.

    Args:
        previous: digest of the receipt before it, or "".
        not_covered: what this erasure could not reach beside NOT_COVERED, such as backups by id.
        blocks: what became of blocks that had learned an erased record, by random ids, such as
            {"id": old, "outcome": "retrained", "successor": new} or {"id": old, "outcome": "deleted"}.
    """
    subjects = [{"name": item.id, "digest": {"sha256": item.digest}} for item in entry.items if item.digest]
    kinds = sorted({(item.id, item.kind) for item in entry.items})
    predicate = {
        "wording": "crypto-erased",
        "erasure": entry.id,
        "vault": vault_id,
        "plan": entry.plan,
        "scope": {"commitment": entry.commitment, "scheme": SCHEME},
        "generation": entry.generation + 1,
        "erased": [{"id": item, "kind": kind} for item, kind in kinds],
        "stores": _stores(entry, stores, checked),
        "executed": datetime.now(UTC).isoformat(timespec="seconds"),
        "not_covered": [*NOT_COVERED, *not_covered],
        "residual_epsilon": entry.residual,
        "previous": previous or None,
    }
    if blocks:
        predicate["blocks"] = [dict(block) for block in blocks]
    return {"_type": STATEMENT_TYPE, "subject": subjects, "predicateType": PREDICATE_TYPE, "predicate": predicate}


def sign(content: Statement, device_seed: bytes) -> bytes:
    """The receipt file: DSSE envelope of `content`, signed with the Ed25519 key of `device_seed` (32 bytes)."""
    envelope = Envelope(canonical_json(content), PAYLOAD_TYPE, {})
    envelope.sign(CryptoSigner(Ed25519PrivateKey.from_private_bytes(device_seed)))
    return canonical_json(envelope.to_dict())


def read(file: bytes) -> Statement:
    """What a receipt says, its form checked and its signature not. Raises VerificationFailed where it is none."""
    return _content(_envelope(file))


def verify(file: bytes, public_key_pem: bytes) -> Statement:
    """The statement of a receipt whose signature holds. Raises VerificationFailed for anything else."""
    key, envelope = SSlibKey.from_crypto(public_key(public_key_pem), KEYID), _envelope(file)
    try:
        envelope.verify([key], 1)
    except (SigningError, ValueError):
        raise _refuse("It was changed, or another device signed it. Ask for it, or for its key, again.") from None
    return _content(envelope)


def verify_chain(files: Sequence[bytes], public_key_pem: bytes) -> list[Statement]:
    """The statements of a vault's receipts, from its first on, each of which names the one before it.

    Raises VerificationFailed that says which receipt does not verify, or where the chain breaks.
    """
    statements: list[Statement] = []
    before = None
    for number, file in enumerate(files, 1):
        try:
            statements.append(verify(file, public_key_pem))
        except VerificationFailed as error:
            raise VerificationFailed(f"Receipt {number} of {len(files)}: {error}") from None
        if statements[-1]["predicate"].get("previous") != before:
            raise _broken(number)
        before = digest(file)
    return statements


def public_key(pem: bytes) -> Ed25519PublicKey:
    """The device's public key. Raises VerificationFailed where it is no Ed25519 key in PEM."""
    try:
        key = load_pem_public_key(pem)
    except (UnsupportedAlgorithm, ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise _refuse("The key is not an Ed25519 public key; give the device's device.pub.")
    return key


def _envelope(file: bytes) -> Envelope:
    if len(file) > LIMIT:
        raise _refuse("It is larger than any receipt.")
    try:
        fields = _json(file)
        signatures = [{**one, "keyid": KEYID} for one in fields["signatures"]]
        envelope = Envelope.from_dict({**fields, "signatures": signatures})
    except (SigningError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _refuse("It is not a DSSE envelope with one signature. Ask for it again.") from None
    if len(envelope.signatures) != 1 or envelope.payload_type != PAYLOAD_TYPE:
        raise _refuse("It is not an in-toto envelope with one signature. Ask for it again.")
    return envelope


def _content(envelope: Envelope) -> Statement:
    try:
        content = _json(envelope.payload)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not _about_an_erasure(content):
        raise _refuse("What it holds is not a statement about an erasure.")
    return content


def _json(data: bytes) -> Any:
    value = json.loads(data.decode())
    canonical_json(value)  # Python also reads NaN, and text that no UTF-8 file can hold
    return value


def _about_an_erasure(content: Statement) -> bool:
    subjects = content.get("subject")
    return (
        (content.get("_type"), content.get("predicateType")) == (STATEMENT_TYPE, PREDICATE_TYPE)
        and isinstance(content.get("predicate"), dict)
        and isinstance(subjects, list)
        and all(isinstance(one, dict) and isinstance(one.get("digest"), dict) for one in subjects)
    )


def _stores(entry: JournalEntry, stores: list[ContentStore], checked: Verification) -> list[dict[str, Any]]:
    held = Counter(item.store for item in entry.items)
    rows = [
        {"name": store.name, "method": store.method, "items": held[store.name], "clean": not checked.found[store.name]}
        for store in stores
    ]
    deep = [(name, how) for name, how in DEEP if name in checked.found]
    return [*rows, *({"name": name, "method": how, "clean": not checked.found[name]} for name, how in deep)]


def _broken(number: int) -> VerificationFailed:
    if number == 1:
        return VerificationFailed(
            "The chain breaks before receipt 1: it names an earlier receipt that was not given. Give every receipt of "
            "the vault, oldest first."
        )
    return VerificationFailed(
        f"The chain breaks between receipt {number - 1} and receipt {number}: the later one does not name the earlier "
        "one as the receipt before it. One is missing, repeated or out of order; give every receipt once, oldest first."
    )


def _refuse(why: str) -> VerificationFailed:
    return VerificationFailed(f"The receipt does not verify. {why}")
