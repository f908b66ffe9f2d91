"""Check fedmem's erasure receipts without fedmem: the standard library and `cryptography` only.

    python verify_receipt.py RECEIPT... --key device.pub

Written from the formats' texts, as a second opinion on fedmem's own verifier:
- DSSE 1.0 (secure-systems-lab/dsse, protocol.md and envelope.md): the signature is over
  "DSSEv1" SP LEN(type) SP type SP LEN(body) SP body; either base64 alphabet; a key id is an unsigned hint.
- in-toto Statement v1 (in-toto/attestation, spec/v1/statement.md): type, predicate type, subjects with digests.
- Ed25519 (RFC 8032), public key as SubjectPublicKeyInfo in PEM (RFC 8410).
- Of fedmem: one signature, the predicate type below, and `previous`, the SHA-256 of the receipt file before it.

Exit codes: 0 every receipt verifies and, of several, each names the one before it and the first names none;
6 something does not hold; 2 wrong usage.
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
from cryptography.hazmat.primitives.serialization import load_pem_public_key

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:fedmem:erasure-receipt:v1"
LARGEST = 64 * 1024 * 1024  # bytes


class NotVerified(Exception):
    """A receipt, or a link of their chain, does not hold."""


def check(receipt: bytes, key_pem: bytes) -> dict[str, Any]:
    """The statement of one receipt. Raises NotVerified."""
    payload, signature = open_envelope(receipt)
    kind = PAYLOAD_TYPE.encode()
    signed = b" ".join([b"DSSEv1", b"%d" % len(kind), kind, b"%d" % len(payload), payload])
    try:
        load_key(key_pem).verify(signature, signed)
    except InvalidSignature:
        raise NotVerified("the signature is not this key's over this payload") from None
    return statement(payload)


def check_chain(receipts: Sequence[bytes], key_pem: bytes) -> list[dict[str, Any]]:
    """The statements of receipts that follow each other from the first one on. Raises NotVerified."""
    found: list[dict[str, Any]] = []
    expected = None
    for number, receipt in enumerate(receipts, 1):
        try:
            found.append(check(receipt, key_pem))
        except NotVerified as error:
            raise NotVerified(f"receipt {number}: {error}") from None
        if found[-1]["predicate"].get("previous") != expected:
            raise NotVerified(f"receipt {number} does not follow on receipt {number - 1}" if number > 1
                              else "receipt 1 is not the first: it names one before it")  # fmt: skip
        expected = hashlib.sha256(receipt).hexdigest()
    return found


def load_key(key_pem: bytes) -> Ed25519PublicKey:
    """An Ed25519 public key. Raises NotVerified."""
    try:
        key = load_pem_public_key(key_pem)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise NotVerified("the key file holds no public key") from None
    if not isinstance(key, Ed25519PublicKey):
        raise NotVerified("the key is not of the kind Ed25519")
    return key


def open_envelope(receipt: bytes) -> tuple[bytes, bytes]:
    """(payload, signature) of an envelope with exactly one signature. Raises NotVerified."""
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
    """The statement in a payload. Raises NotVerified where it is none about an erasure."""
    said = parsed(payload)
    subjects = said.get("subject")
    if said.get("_type") != STATEMENT_TYPE or said.get("predicateType") != PREDICATE_TYPE:
        raise NotVerified("what is signed is no statement about an erasure")
    if not isinstance(said.get("predicate"), dict) or not isinstance(subjects, list):
        raise NotVerified("the statement lacks its subjects or its predicate")
    if not all(isinstance(one, dict) and isinstance(one.get("digest"), dict) for one in subjects):
        raise NotVerified("a subject of the statement has no digest")
    return said


def parsed(data: bytes) -> dict[str, Any]:
    """A JSON object in UTF-8. Raises NotVerified."""
    try:
        found = json.loads(data.decode("utf-8"))
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode("utf-8")  # what only Python calls JSON fails here
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise NotVerified("it is not a JSON object")
    return found


def decoded(text: Any) -> bytes:
    """Base64 of either alphabet. Raises NotVerified."""
    for alphabet in (b"+/", b"-_") if isinstance(text, str) else ():
        try:
            return base64.b64decode(text, altchars=alphabet, validate=True)
        except ValueError:
            continue
    raise NotVerified("a field of the envelope is not base64")


def main(words: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Check fedmem's erasure receipts; several, oldest first, as a chain.")
    parser.add_argument("receipts", nargs="+", type=Path, metavar="RECEIPT")
    parser.add_argument("--key", required=True, type=Path, help="the device's public key, PEM")
    given = parser.parse_args(words)
    try:
        files, key = [path.read_bytes() for path in given.receipts], given.key.read_bytes()
        said = check_chain(files, key) if len(files) > 1 else [check(files[0], key)]
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")
    except NotVerified as error:
        print(f"NOT VERIFIED: {error}", file=sys.stderr)
        return 6
    for file, one in zip(files, said, strict=True):
        print("verified", hashlib.sha256(file).hexdigest(), one["predicate"].get("erasure"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
