"""Check fedmem's erasure receipts without fedmem: the standard library and `cryptography` only.

    python verify_receipt.py RECEIPT... --key device.pub
    python verify_receipt.py RECEIPT --key device.pub --items LIST

It is written from the specifications of the formats, to check fedmem's own verifier independently:
- DSSE 1.0 (secure-systems-lab/dsse, protocol.md and envelope.md): the signature is over
  "DSSEv1" SP LEN(type) SP type SP LEN(body) SP body; either base64 alphabet; a key id is an unsigned hint.
- in-toto Statement v1 (in-toto/attestation, spec/v1/statement.md): type, predicate type, subjects with digests.
- Ed25519 (RFC 8032), public key as SubjectPublicKeyInfo in PEM (RFC 8410).
- fedmem's rules: one signature, a predicate type below, and `previous`, the SHA-256 of the receipt file before it.
- A receipt of the second type holds `items.root`, the Merkle tree hash (RFC 6962, section 2.1) over the lines of the
  list of erased items.

Exit codes:
- 0: every receipt verifies. Of several receipts, each names the one before it, and the first names none.
- 6: a receipt or the chain does not verify.
- 2: wrong usage.
"""

import argparse
import base64
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:fedmem:erasure-receipt:v1"
LISTED_TYPE = "urn:fedmem:erasure-receipt:v2"
LARGEST = 64 * 1024 * 1024  # bytes


class NotVerified(Exception):
    """A receipt, or the chain of receipts, does not verify."""


def check(receipt: bytes, key_pem: bytes) -> dict[str, Any]:
    """Return the statement of one receipt. Raises NotVerified."""
    payload, signature = open_envelope(receipt)
    kind = PAYLOAD_TYPE.encode()
    signed = b" ".join([b"DSSEv1", b"%d" % len(kind), kind, b"%d" % len(payload), payload])
    try:
        load_key(key_pem).verify(signature, signed)
    except InvalidSignature:
        raise NotVerified("the signature is not this key's over this payload") from None
    return statement(payload)


def check_by_any(receipt: bytes, key_pems: Sequence[bytes]) -> tuple[dict[str, Any], bytes]:
    """Return the statement of one receipt, and the key that signed it. Raises NotVerified if none of the keys did."""
    for key_pem in key_pems[:-1]:
        try:
            return check(receipt, key_pem), key_pem
        except NotVerified:
            continue
    return check(receipt, key_pems[-1]), key_pems[-1]


def fingerprint(key_pem: bytes) -> str:
    """Return the SHA-256, hex, of a public key's SubjectPublicKeyInfo in DER."""
    return hashlib.sha256(load_key(key_pem).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def check_chain(receipts: Sequence[bytes], *key_pems: bytes) -> list[dict[str, Any]]:
    """Return the statements of a chain of receipts, oldest first. Raises NotVerified.

    Where the key changes, the later receipt must name the earlier key's fingerprint in `earlier_keys`.
    """
    statements: list[dict[str, Any]] = []
    expected, last_key = None, b""
    for number, receipt in enumerate(receipts, 1):
        try:
            verified, key = check_by_any(receipt, key_pems)
            statements.append(verified)
            keys = verified["predicate"].get("earlier_keys")
            if last_key and key != last_key and not (isinstance(keys, list) and fingerprint(last_key) in keys):
                raise NotVerified("another key signed it, and it does not name the earlier key")
        except NotVerified as error:
            raise NotVerified(f"receipt {number}: {error}") from None
        if statements[-1]["predicate"].get("previous") != expected:
            raise NotVerified(f"receipt {number} does not follow on receipt {number - 1}" if number > 1
                              else "receipt 1 is not the first: it names one before it")  # fmt: skip
        expected, last_key = hashlib.sha256(receipt).hexdigest(), key
    return statements


def load_key(key_pem: bytes) -> Ed25519PublicKey:
    """Return the Ed25519 public key in a PEM file. Raises NotVerified."""
    try:
        key = load_pem_public_key(key_pem)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise NotVerified("the key file holds no public key") from None
    if not isinstance(key, Ed25519PublicKey):
        raise NotVerified("the key is not of the kind Ed25519")
    return key


def open_envelope(receipt: bytes) -> tuple[bytes, bytes]:
    """Return (payload, signature) of an envelope with exactly one signature. Raises NotVerified."""
    if len(receipt) > LARGEST:
        raise NotVerified("the file is larger than any receipt")
    envelope = parsed(receipt)
    signatures = envelope.get("signatures")
    if envelope.get("payloadType") != PAYLOAD_TYPE:
        raise NotVerified("the payload is of another type")
    if not isinstance(signatures, list) or len(signatures) != 1 or not isinstance(signatures[0], dict):
        raise NotVerified("it does not have exactly one signature")
    return decoded(envelope.get("payload")), decoded(signatures[0].get("sig"))


def statement(payload: bytes) -> dict[str, Any]:
    """Return the statement in a payload. Raises NotVerified if it is not one about an erasure."""
    values = parsed(payload)
    subjects = values.get("subject")
    if values.get("_type") != STATEMENT_TYPE or values.get("predicateType") not in (PREDICATE_TYPE, LISTED_TYPE):
        raise NotVerified("the payload is no statement about an erasure")
    if not isinstance(values.get("predicate"), dict) or not isinstance(subjects, list):
        raise NotVerified("the statement lacks its subjects or its predicate")
    if not all(isinstance(subject, dict) and isinstance(subject.get("digest"), dict) for subject in subjects):
        raise NotVerified("a subject of the statement has no digest")
    return values


def check_items(verified: dict[str, Any], lines: bytes) -> None:
    """Check that `lines` is the list of erased items of a verified statement. Raises NotVerified."""
    items = verified["predicate"].get("items")
    if verified["predicateType"] != LISTED_TYPE or not isinstance(items, dict):
        raise NotVerified("the receipt names its items itself, and has no list")
    if tree_hash(lines.removesuffix(b"\n").split(b"\n")).hex() != items.get("root"):
        raise NotVerified("the list of items is not the list of this receipt")


def tree_hash(leaves: Sequence[bytes]) -> bytes:
    """Return the Merkle tree hash, with the recursion of RFC 6962: split at the largest power of two below the size."""
    if len(leaves) < 2:
        return hashlib.sha256(b"\0" + leaves[0] if leaves else b"").digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + tree_hash(leaves[:split]) + tree_hash(leaves[split:])).digest()


def parsed(data: bytes) -> dict[str, Any]:
    """Return the JSON object in `data`, which is UTF-8. Raises NotVerified."""
    try:
        values = json.loads(data.decode("utf-8"))
        # Python reads NaN and lone surrogates, which are not JSON: they fail here.
        json.dumps(values, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise NotVerified("it is not a JSON object")
    return values


def decoded(text: Any) -> bytes:
    """Return the bytes of base64 text in either alphabet. Raises NotVerified."""
    for alphabet in (b"+/", b"-_") if isinstance(text, str) else ():
        try:
            return base64.b64decode(text, altchars=alphabet, validate=True)
        except ValueError:
            continue
    raise NotVerified("a field of the envelope is not base64")


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify the receipts that the command line names, and return the exit code."""
    parser = argparse.ArgumentParser(description="Check fedmem's erasure receipts; several, oldest first, as a chain.")
    parser.add_argument("receipts", nargs="+", type=Path, metavar="RECEIPT")
    parser.add_argument("--key", required=True, type=Path, action="append",
                        help="the device's public key, PEM; repeat it if the device's key changed")  # fmt: skip
    parser.add_argument("--items", type=Path, help="the list of erased items; only with one receipt")
    options = parser.parse_args(arguments)
    if options.items is not None and len(options.receipts) > 1:
        parser.error("a list of items belongs to one receipt")
    try:
        files, keys = [path.read_bytes() for path in options.receipts], [path.read_bytes() for path in options.key]
        statements = check_chain(files, *keys) if len(files) > 1 else [check_by_any(files[0], keys)[0]]
        if options.items is not None:
            check_items(statements[0], options.items.read_bytes())
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")
    except NotVerified as error:
        print(f"NOT VERIFIED: {error}", file=sys.stderr)
        return 6
    for file, verified in zip(files, statements, strict=True):
        print("verified", hashlib.sha256(file).hexdigest(), verified["predicate"].get("erasure"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
