"""Scenarios of the receipt and of the chain of receipts."""

import base64
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tools import BAD, KEY, OK, OTHER_KEY, VAULT, Vectors, flip, plain

from fedmem.erasure import Scope, receipt
from fedmem.storage.canonical import canonical_json, digest

SUBJECT = {"name": "11" * 16, "digest": {"sha256": "0" * 64}}
PREDICATE = {"wording": "crypto-erased", "erasure": "33" * 16, "erased": [{"id": "11" * 16, "kind": "record"}]}
CONTENT = {"_type": receipt.STATEMENT_TYPE, "predicateType": receipt.PREDICATE_TYPE, "predicate": PREDICATE,
           "subject": [SUBJECT]}  # fmt: skip


def pem(seed: bytes) -> bytes:
    """The public key of a device."""
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def enveloped(payload: bytes, *, signed: bytes | None = None, kind: str = receipt.PAYLOAD_TYPE) -> dict[str, Any]:
    """An envelope made from DSSE's text; `signed` replaces what the signature is over."""
    body = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload) if signed is None else signed
    signature = Ed25519PrivateKey.from_private_bytes(KEY).sign(body)
    return {"payload": plain(payload), "payloadType": kind, "signatures": [{"sig": plain(signature)}]}


def whole(number: int, previous: str | None) -> dict[str, Any]:
    """A statement with every field that a receipt has."""
    stores = [
        {"name": "key-table", "method": "row left out under a new epoch key", "items": 1, "clean": True},
        {"name": "files-under-root", "method": "rescan for ciphertext salts", "clean": True},
    ]
    said = {
        "vault": VAULT, "plan": "ab" * 32, "generation": number, "executed": "2025-01-02T03:04:05+00:00",
        "scope": {"commitment": commitment(), "scheme": receipt.SCHEME}, "stores": stores,
        "not_covered": ["copies of the disk made before"], "previous": previous,
        "residual_epsilon": {"epsilon": 0.0, "reason": "nothing of this scope ever left the vault"},
    }  # fmt: skip
    return {**CONTENT, "predicate": {**PREDICATE, **said, "erasure": f"{number:032x}"}}


def commitment() -> str:
    """HMAC-SHA-256 of the scope block:health under an opening of 32 bytes 0x05."""
    return receipt.commit(Scope.block("health"), bytes([5]) * 32)


def made() -> Vectors:
    """Signed receipts and chains of them."""
    good = receipt.sign(CONTENT, KEY)
    found: Vectors = {
        name: {
            "why": why,
            "expect": expect,
            "receipt": data,
            "key": pem(KEY),
            "statement": CONTENT if expect == OK else {},
        }
        for name, (why, expect, data) in {**envelopes(good), **statements(), **signatures(good)}.items()
    }
    full = whole(1, None)
    found["whole"] = {**found["good"], "why": "every field", "statement": full, "receipt": receipt.sign(full, KEY)}
    p256 = ec.derive_private_key(5, ec.SECP256R1()).public_key()
    keys = {
        "another-key": ("signed by another device", pem(OTHER_KEY)),
        "key-of-another-kind": ("the key is of P-256",
                                p256.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)),
        "key-not-pem": ("the key is no PEM", b"ssh-ed25519 AAAA"),
        "key-empty": ("no key", b""),
    }  # fmt: skip
    for name, (why, key) in keys.items():
        found[name] = {**found["good"], "why": why, "expect": BAD, "key": key, "statement": {}}
    return {**found, **chains()}


def envelopes(good: bytes) -> dict[str, tuple[str, str, bytes]]:
    """What stands around the payload."""
    fields = json.loads(good)
    (signature,) = fields["signatures"]
    bare = {"sig": signature["sig"]}
    other = json.loads(receipt.sign(CONTENT, OTHER_KEY))["signatures"][0]
    without = json.dumps({name: fields[name] for name in ("payload", "payloadType")}).encode()

    def said(**more: Any) -> bytes:
        return json.dumps({**fields, **more}).encode()

    safe = {"payload": fields["payload"].translate(SAFE), "signatures": [{"sig": signature["sig"].translate(SAFE)}]}
    return {
        "good": ("signed by this key", OK, good),
        "url-safe": ("base64 with the other alphabet", OK, said(**safe)),
        "no-keyid": ("without the hint of a key", OK, said(signatures=[bare])),
        "other-keyid": ("the hint names another key; nobody signed it", OK, said(signatures=[{**bare, "keyid": "x"}])),
        "more-fields": ("fields that DSSE does not know", OK, said(more=1, signatures=[{**bare, "more": [1]}])),
        "unsigned": ("no signature", BAD, said(signatures=[])),
        "two-signatures": ("one more, by another device", BAD, said(signatures=[signature, other])),
        "signature-twice": ("the same signature twice", BAD, said(signatures=[signature, signature])),
        "no-signatures": ("no field of signatures", BAD, without),
        "other-payload-type": ("the envelope names another type", BAD, said(payloadType="application/json")),
        "payload-not-base64": ("the payload is no base64", BAD, said(payload="é")),
        "payload-a-number": ("the payload is a number", BAD, said(payload=7)),
        "nan-outside": ("a number that JSON does not have, beside the payload", BAD, said(more=float("nan"))),
        "cut": ("the last byte is missing", BAD, good[:-1]),
        "nothing": ("an empty file", BAD, b""),
        "not-json": ("no JSON", BAD, b"\x00\xff"),
        "a-list": ("JSON that is no object", BAD, b"[]"),
        "utf-16": ("text in UTF-16", BAD, good.decode().encode("utf-16")),
    }  # fmt: skip


V0 = "https://in-toto.io/Statement/v0.1"
SAFE = str.maketrans("+/", "-_")


def statements() -> dict[str, tuple[str, str, bytes]]:
    """Signed by the device, and still no receipt."""
    known = canonical_json(CONTENT)
    nan = known.replace(b'"crypto-erased"', b"NaN")
    surrogate = known.replace(b'"crypto-erased"', rb'"\ud800"')
    cases = {
        "older-statement": ("in-toto Statement v0.1", canonical_json({**CONTENT, "_type": V0})),
        "no-predicate": ("nothing about the erasure", canonical_json({**CONTENT, "predicate": None})),
        "predicate-a-list": ("a predicate that is no object", canonical_json({**CONTENT, "predicate": []})),
        "subject-missing": ("no subject", canonical_json({k: v for k, v in CONTENT.items() if k != "subject"})),
        "subject-without-digest": ("a subject by name alone", canonical_json({**CONTENT, "subject": [{"name": "x"}]})),
        "statement-a-list": ("JSON that is no object", b"[]"),
        "statement-empty": ("an empty payload", b""),
        "statement-nan": ("a number that JSON does not have", nan),
        "statement-surrogate": ("half a character", surrogate),
    }  # fmt: skip
    other = receipt.sign({**CONTENT, "predicateType": "https://example.org/other"}, KEY)
    return {
        "other-statement": ("signed, but no erasure", BAD, other),
        **{name: (why, BAD, json.dumps(enveloped(payload)).encode()) for name, (why, payload) in cases.items()},
    }


def signatures(good: bytes) -> dict[str, tuple[str, str, bytes]]:
    """Signatures over something else."""
    fields, payload = json.loads(good), canonical_json(CONTENT)
    signature = base64.b64decode(fields["signatures"][0]["sig"])

    def resigned(sig: bytes) -> bytes:
        return json.dumps({**fields, "signatures": [{"sig": plain(sig)}]}).encode()

    def repaid(other: bytes) -> bytes:
        return json.dumps({**fields, "payload": plain(other)}).encode()

    altered = json.dumps(CONTENT).replace("record", "block").encode()
    other_kind = {**enveloped(payload, kind="application/json"), "payloadType": receipt.PAYLOAD_TYPE}
    return {
        "changed-payload": ("a changed statement", BAD, repaid(altered)),
        "flipped-payload": ("a bit of the statement", BAD, repaid(flip(payload, -20))),
        "flipped-signature": ("a bit of the signature", BAD, resigned(flip(signature, 5))),
        "short-signature": ("63 bytes", BAD, resigned(signature[:-1])),
        "empty-signature": ("no byte", BAD, resigned(b"")),
        "signed-without-pae": ("over the payload alone", BAD, json.dumps(enveloped(payload, signed=payload)).encode()),
        "signed-as-another-type": ("over another payload type", BAD, json.dumps(other_kind).encode()),
        "signed-plainly": ("an envelope made from DSSE's text", OK, json.dumps(enveloped(payload)).encode()),
    }  # fmt: skip


def chains() -> Vectors:
    """Receipts of one vault, in the order given."""

    def signed(number: int, before: bytes | None, seed: bytes = KEY) -> bytes:
        return receipt.sign(whole(number, None if before is None else digest(before)), seed)

    first = signed(1, None)
    second = signed(2, first)
    third = signed(3, second)
    foreign = signed(3, second, OTHER_KEY)
    spaced = json.dumps(json.loads(first)).encode()
    cases = {
        "chain": ("three, oldest first", OK, [first, second, third]),
        "chain-of-one": ("the first alone", OK, [first]),
        "chain-without-first": ("the first is missing", BAD, [second, third]),
        "chain-without-second": ("the second is missing", BAD, [first, third]),
        "chain-reordered": ("the last two change places", BAD, [first, third, second]),
        "chain-newest-first": ("the wrong way round", BAD, [third, second, first]),
        "chain-repeated": ("the second stands twice", BAD, [first, second, second, third]),
        "chain-second-replaced": ("another receipt of the device in its place", BAD, [first, signed(4, first), third]),
        "chain-forked": ("two that follow the first", BAD, [first, second, signed(4, first)]),
        "chain-two-firsts": ("two that follow none", BAD, [first, signed(4, None)]),
        "chain-spaced": ("the first is written in other bytes that say the same", BAD, [spaced, second]),
        "chain-flipped": ("a bit of the second", BAD, [first, flip(second, 40), third]),
        "chain-of-two-devices": ("the third is signed by another device", BAD, [first, second, foreign]),
    }  # fmt: skip
    return {
        name: {"why": why, "expect": expect, "receipts": files, "key": pem(KEY)}
        for name, (why, expect, files) in cases.items()
    }
