"""Signed receipts: an in-toto Statement v1 in a DSSE envelope, Ed25519, verifiable with the file and the public key.

Invariants
- A receipt names items by random ids and digests of ciphertext; the scope is a salted commitment.
- The receipt of a large erasure (predicate type v2) holds a Merkle root over its items and their number by kind. The
  list of the items is sealed beside it in the vault, and `lists_items` checks an exported list against the receipt.
- It is signed by the device key, which no erasure destroys, and names the receipt before it by digest. A vault whose
  keystore was lost has a new device key; its receipts name the earlier keys by fingerprint.
- The places that an erasure cannot reach are listed under `not_covered`. The word is crypto-erased, never wiped.

Guarantees
    DSSE v1 pre-authentication encoding over the exact payload bytes, Ed25519 (RFC 8032). `verify` accepts one
    signature by the given key over our statement and predicate types, and nothing else. The key id in an envelope
    is an unsigned hint (DSSE): it may be missing, and decides nothing.

    | input | result |
    |---|---|
    | a changed byte, another key, no signature, two signatures | VerificationFailed |
    | not JSON, not an envelope, another payload or predicate type, NaN | VerificationFailed |
    | more than 64 MiB | VerificationFailed before parsing |
    | a chain in which the key changes and the later receipt does not name the earlier key | VerificationFailed |
    | a receipt missing, repeated or out of order in a chain | VerificationFailed that names the link |
    | the newest receipts missing from a chain | not visible in the files: compare the last digest with a known one |
    | no file at all in a chain | an empty list |

    statements = verify_chain([first, second], public_key_pem)
    opens(statements[0], Scope.block("health"), opening)
"""

import contextlib
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
from fedmem.storage import merkle
from fedmem.storage.canonical import canonical_json, digest
from fedmem.vault.crypto.device_key import fingerprint
from fedmem.vault.store.content_stores import ContentStore

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:fedmem:erasure-receipt:v1"
LISTED_TYPE = "urn:fedmem:erasure-receipt:v2"
TREE = "RFC 6962 Merkle tree, SHA-256, one leaf for each line of the list of items"
SCHEME = "HMAC-SHA256(opening, canonical JSON of the scope)"
KEYID = "device"
LIMIT = 64 << 20
Statement = dict[str, Any]


def commit(scope: Scope, opening: bytes) -> str:
    """Return the commitment to a scope: HMAC-SHA256 of its encoding under the opening.

    Guarantees
        Without the opening, the commitment does not reveal the scope (HMAC is a PRF); it opens to one scope only
        (SHA-256 is collision resistant).

    Args:
        scope: the scope of the erasure.
        opening: 32 uniformly random bytes, used for one receipt only.

    Returns:
        64 hex digits.
    """
    return hmac.new(opening, scope.encode(), hashlib.sha256).hexdigest()


def opens(content: Mapping[str, Any], scope: Scope, opening: bytes) -> bool:
    """Return True if a receipt is about `scope`: the opening opens its commitment to that scope.

    Args:
        content: the statement of the receipt.
        scope: the scope to compare with.
        opening: the 32 bytes that the erasure returned.
    """
    scope_field = content["predicate"].get("scope")
    commitment = scope_field.get("commitment") if isinstance(scope_field, dict) else None
    return isinstance(commitment, str) and hmac.compare_digest(commitment.encode(), commit(scope, opening).encode())


def statement(
    vault_id: str,
    entry: JournalEntry,
    stores: list[ContentStore],
    verification: Verification,
    previous: str,
    *,
    not_covered: Sequence[str] = (),
    blocks: Sequence[Mapping[str, Any]] = (),
    earlier_keys: Sequence[str] = (),
) -> Statement:
    """Return the statement of one finished erasure.

    Args:
        vault_id: the vault's random id.
        entry: the journal entry of the erasure.
        stores: the registered stores.
        verification: the clean result of the rescan.
        previous: digest of the receipt before it, or "".
        not_covered: sentences about what this erasure does not reach; see `not_covered`.
        blocks: the fate of blocks that had learned an erased record, by random ids, such as
            {"id": old, "outcome": "retrained", "successor": new} or {"id": old, "outcome": "deleted"}.
        earlier_keys: fingerprints of the device keys that this vault had before, oldest first.
    """
    predicate = {
        "wording": "crypto-erased",
        "erasure": entry.id,
        "vault": vault_id,
        "plan": entry.plan,
        "scope": {"commitment": entry.commitment, "scheme": SCHEME},
        "generation": entry.generation + 1,
        "stores": _stores(entry, stores, verification),
        "executed": datetime.now(UTC).isoformat(timespec="seconds"),
        "not_covered": list(not_covered),
        "residual_epsilon": entry.residual,
        "previous": previous or None,
    }
    if blocks:
        predicate["blocks"] = [dict(block) for block in blocks]
    if earlier_keys:
        predicate["earlier_keys"] = list(earlier_keys)
    if entry.listed:
        subjects = [{"name": "items", "digest": {"merkleSha256": entry.listed["root"]}}]
        predicate["items"] = {"scheme": TREE, **{name: entry.listed[name] for name in ("root", "count", "kinds")}}
        return {"_type": STATEMENT_TYPE, "subject": subjects, "predicateType": LISTED_TYPE, "predicate": predicate}
    subjects = [{"name": item.id, "digest": {"sha256": item.digest}} for item in entry.items if item.digest]
    kinds = sorted({(item.id, item.kind) for item in entry.items})
    predicate["erased"] = [{"id": item, "kind": kind} for item, kind in kinds]
    return {"_type": STATEMENT_TYPE, "subject": subjects, "predicateType": PREDICATE_TYPE, "predicate": predicate}


def lists_items(content: Mapping[str, Any], lines: bytes) -> bool:
    """Return True if the exported list of items is the one that a receipt is about.

    Args:
        content: the statement of the receipt.
        lines: the list: one line for each item, as `fedmem receipt items` writes it.

    Raises:
        VerificationFailed: the receipt names its items itself and has no list.
    """
    items = content["predicate"].get("items")
    expected = items.get("root") if isinstance(items, dict) else None
    if content["predicateType"] != LISTED_TYPE or not isinstance(expected, str):
        raise _refusal("It names its items itself. There is no list of items to check.")
    leaves = lines.removesuffix(b"\n").split(b"\n")
    return hmac.compare_digest(merkle.root(leaves).hex().encode(), expected.encode())


def sign(content: Statement, device_seed: bytes) -> bytes:
    """Return the receipt file: a statement in a DSSE envelope with an Ed25519 signature.

    Guarantees
        The signature covers the payload's type and bytes (DSSE v1). The same statement and key give the same file.

    Args:
        content: the statement, JSON.
        device_seed: the device key, 32 bytes: an Ed25519 private key.
    """
    envelope = Envelope(canonical_json(content), PAYLOAD_TYPE, {})
    envelope.sign(CryptoSigner(Ed25519PrivateKey.from_private_bytes(device_seed)))
    return canonical_json(envelope.to_dict())


def read(file: bytes) -> Statement:
    """Return the statement of a receipt. Its form is checked, and its signature is not.

    Guarantees
        None on the origin: anyone can write such a file. Use `verify` for that.

    Args:
        file: the receipt file.

    Raises:
        VerificationFailed: the file is no receipt.
    """
    return _content(_envelope(file))


def verify(file: bytes, public_key_pem: bytes) -> Statement:
    """Return the statement of a receipt whose signature verifies.

    Args:
        file: the receipt file.
        public_key_pem: the device's public key, PEM.

    Raises:
        VerificationFailed: the file or the key is anything else.
    """
    key, envelope = SSlibKey.from_crypto(public_key(public_key_pem), KEYID), _envelope(file)
    try:
        envelope.verify([key], 1)
    except (SigningError, ValueError):
        raise _refusal("It was changed, or another device signed it. Ask for it, or for its key, again.") from None
    return _content(envelope)


def verify_by_any(file: bytes, public_keys: Sequence[bytes]) -> tuple[Statement, bytes]:
    """Return the statement of a receipt, and the key of `public_keys` (PEM) that signed it.

    Guarantees
        As `verify`, for the key that is returned.

    Args:
        file: the receipt file.
        public_keys: at least one public key, PEM.

    Raises:
        VerificationFailed: none of the keys did, or the file is no receipt.
    """
    for key in public_keys[:-1]:
        with contextlib.suppress(VerificationFailed):
            return verify(file, key), key
    return verify(file, public_keys[-1]), public_keys[-1]


def verify_chain(files: Sequence[bytes], *public_keys: bytes) -> list[Statement]:
    """Return the statements of a vault's receipts, of which each one names the one before it.

    Args:
        files: every receipt file of the vault, oldest first.
        public_keys: the device's public key, PEM; several if the device's key changed.

    Raises:
        VerificationFailed: the error names the receipt that does not verify, or the place where the chain breaks.
    """
    statements: list[Statement] = []
    previous, last_key = None, b""
    for number, file in enumerate(files, 1):
        try:
            content, key = verify_by_any(file, public_keys)
            if last_key and key != last_key:
                _check_change_of_key(content, last_key)
        except VerificationFailed as error:
            raise VerificationFailed(f"Receipt {number} of {len(files)}: {error}") from None
        if content["predicate"].get("previous") != previous:
            raise _chain_error(number)
        statements.append(content)
        previous, last_key = digest(file), key
    return statements


def _check_change_of_key(content: Statement, earlier: bytes) -> None:
    keys = content["predicate"].get("earlier_keys")
    if not isinstance(keys, list) or fingerprint(earlier) not in keys:
        raise _refusal("Another key signed it than the receipt before it, and it does not name that key as its own.")


def public_key(pem: bytes) -> Ed25519PublicKey:
    """Return the device's public key.

    Args:
        pem: the content of `device.pub`.

    Raises:
        VerificationFailed: it is no Ed25519 key in PEM.
    """
    try:
        key = load_pem_public_key(pem)
    except (UnsupportedAlgorithm, ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise _refusal("The key is not an Ed25519 public key; give the device's device.pub.")
    return key


def _envelope(file: bytes) -> Envelope:
    if len(file) > LIMIT:
        raise _refusal("It is larger than any receipt.")
    try:
        fields = _json(file)
        signatures = [{**signature, "keyid": KEYID} for signature in fields["signatures"]]
        envelope = Envelope.from_dict({**fields, "signatures": signatures})
    except (SigningError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _refusal("It is not a DSSE envelope with one signature. Ask for it again.") from None
    if len(envelope.signatures) != 1 or envelope.payload_type != PAYLOAD_TYPE:
        raise _refusal("It is not an in-toto envelope with one signature. Ask for it again.")
    return envelope


def _content(envelope: Envelope) -> Statement:
    try:
        content = _json(envelope.payload)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not _is_about_an_erasure(content):
        raise _refusal("Its content is not a statement about an erasure.")
    return content


def _json(data: bytes) -> Any:
    value = json.loads(data.decode())
    canonical_json(value)  # Python also reads NaN, and text that UTF-8 cannot encode
    return value


def _is_about_an_erasure(content: Statement) -> bool:
    subjects = content.get("subject")
    return (
        content.get("_type") == STATEMENT_TYPE
        and content.get("predicateType") in (PREDICATE_TYPE, LISTED_TYPE)
        and isinstance(content.get("predicate"), dict)
        and isinstance(subjects, list)
        and all(isinstance(subject, dict) and isinstance(subject.get("digest"), dict) for subject in subjects)
    )


def _stores(entry: JournalEntry, stores: list[ContentStore], verification: Verification) -> list[dict[str, Any]]:
    item_counts = Counter(item.store for item in entry.items)
    rows = [
        {
            "name": store.name,
            "method": store.method,
            "items": item_counts[store.name],
            "clean": not verification.remnants[store.name],
        }
        for store in stores
    ]
    deep = [(name, method) for name, method in DEEP if name in verification.remnants]
    return [
        *rows,
        *({"name": name, "method": method, "clean": not verification.remnants[name]} for name, method in deep),
    ]


def _chain_error(number: int) -> VerificationFailed:
    if number == 1:
        return VerificationFailed(
            "The chain breaks before receipt 1: it names an earlier receipt that was not given. Give every receipt of "
            "the vault, oldest first."
        )
    return VerificationFailed(
        f"The chain breaks between receipt {number - 1} and receipt {number}: the later one does not name the earlier "
        "one as the receipt before it. One is missing, repeated or out of order; give every receipt once, oldest first."
    )


def _refusal(reason: str) -> VerificationFailed:
    return VerificationFailed(f"The receipt does not verify. {reason}")
