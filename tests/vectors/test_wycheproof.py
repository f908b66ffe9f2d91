"""The primitives we use, on every vector of Project Wycheproof, where its files are at hand.

FEDMEM_WYCHEPROOF names a checkout of C2SP/wycheproof, or a folder with its JSON files. Whether the checks themselves
can fail is tested without it, on small files of the same form.
"""

import hashlib
import hmac
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedmem.erasure import receipt
from fedmem.errors import VerificationFailed
from fedmem.vault.crypto import container

Vector = dict[str, Any]
Check = Callable[[Vector, dict[str, bytes]], bool]


def gcm(group: Vector, held: dict[str, bytes]) -> bool | None:
    """AES-256-GCM in the sizes that Cobblestone-256 uses."""
    if (group["keySize"], group["ivSize"], group["tagSize"]) != (256, 96, 128):
        return None
    try:
        opened = AESGCM(held["key"]).decrypt(held["iv"], held["ct"] + held["tag"], held["aad"])
    except InvalidTag:
        return False
    sealed = AESGCM(held["key"]).encrypt(held["iv"], held["msg"], held["aad"])
    return opened == held["msg"] and sealed == held["ct"] + held["tag"]


def hkdf(algorithm: hashes.HashAlgorithm) -> Check:
    """HKDF, as keys are derived from slots (SHA-512) and from a run's key (SHA-256)."""

    def check(group: Vector, held: dict[str, bytes]) -> bool:
        try:
            return HKDF(algorithm, group["size"], held["salt"], held["info"]).derive(held["ikm"]) == held["okm"]
        except ValueError:  # more than 255 blocks
            return False

    return check


def mac(group: Vector, held: dict[str, bytes]) -> bool:
    """HMAC-SHA-256, as scopes are committed to; a shorter tag is the start of a whole one."""

    class Text:
        def encode(self) -> bytes:
            return held["msg"]

    return receipt.commit(Text(), held["key"])[: group["tagSize"] // 4] == held["tag"].hex()  # type: ignore[arg-type]


def ed25519(group: Vector, held: dict[str, bytes]) -> bool:
    """Ed25519, as receipts and routing tables are signed."""
    public = group.get("publicKey") or group["key"]
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public["pk"])).verify(held["sig"], held["msg"])
    except InvalidSignature:
        return False
    return True


def cobblestone(group: Vector, held: dict[str, bytes]) -> bool:
    """Cobblestone-256 through the door by which containers and cells are opened."""
    try:
        opened = container._decrypt(held["key"], held["ctx"], zlib.decompress(held["ct"]), "vector")
    except (VerificationFailed, ValueError):  # ValueError: a key of another size
        return False
    return (len(opened), hashlib.sha512(opened).hexdigest()) == (group["msgLength"], held["msgSha512"].hex())


FILES: dict[str, Callable[[Vector, dict[str, bytes]], bool | None]] = {
    "aes_gcm_test.json": gcm,
    "hkdf_sha512_test.json": hkdf(hashes.SHA512()),
    "hkdf_sha256_test.json": hkdf(hashes.SHA256()),
    "hmac_sha256_test.json": mac,
    "ed25519_test.json": ed25519,
    "c2sp_chunked_encryption_aes_256_gcm_test.json": cobblestone,
}


def wrong(name: str, vectors: Vector) -> tuple[int, list[int]]:
    """How many vectors were tried, and the numbers of those that came out otherwise than the file says."""
    tried, found = 0, []
    for group in vectors["testGroups"]:
        for test in group["tests"]:
            held = {field: bytes.fromhex(text) for field, text in test.items() if is_hex(field, text)}
            accepted = FILES[name]({**group, **test}, held)
            tried += accepted is not None
            if accepted is not None and test["result"] != "acceptable" and accepted != (test["result"] == "valid"):
                found.append(test["tcId"])
    return tried, found


def is_hex(field: str, text: Any) -> bool:
    """Whether a field of a vector holds bytes."""
    return isinstance(text, str) and field not in ("comment", "result")


@pytest.mark.parametrize("name", FILES)
def test_every_vector(name: str) -> None:
    folder = os.environ.get("FEDMEM_WYCHEPROOF")
    if not folder:
        pytest.skip("set FEDMEM_WYCHEPROOF to a checkout of github.com/C2SP/wycheproof to run its vectors")
    known = [path for path in (Path(folder, name), Path(folder, "testvectors_v1", name)) if path.is_file()]
    if not known:
        pytest.skip(f"FEDMEM_WYCHEPROOF names a folder without {name}; an older checkout may lack it")
    tried, found = wrong(name, json.loads(known[0].read_text("utf-8")))
    assert tried > 0
    assert found == []


def small(name: str) -> tuple[Vector, Vector]:
    """A group and a valid vector, as the file `name` would hold them."""
    key, msg = bytes(range(32)), b"a message"
    if name.startswith("aes"):
        both = AESGCM(key).encrypt(bytes(12), msg, b"aad")
        return {"keySize": 256, "ivSize": 96, "tagSize": 128}, {
            "key": key, "iv": bytes(12), "aad": b"aad", "msg": msg, "ct": both[:-16], "tag": both[-16:]}  # fmt: skip
    if name.startswith("hkdf"):
        algorithm = hashes.SHA512() if "512" in name else hashes.SHA256()
        okm = HKDF(algorithm, 20, b"salt", b"info").derive(key)
        return {}, {"ikm": key, "salt": b"salt", "info": b"info", "size": 20, "okm": okm}
    if name.startswith("hmac"):
        return {"tagSize": 128}, {"key": key, "msg": msg, "tag": hmac.digest(key, msg, "sha256")[:16]}
    if name.startswith("ed"):
        pair = Ed25519PrivateKey.from_private_bytes(key)
        return {"publicKey": {"pk": pair.public_key().public_bytes_raw().hex()}}, {"msg": msg, "sig": pair.sign(msg)}
    sealed = container._encrypt(key, b"context", msg)
    return {}, {"key": key, "ctx": b"context", "ct": zlib.compress(sealed), "msgLength": len(msg),
                "msgSha512": hashlib.sha512(msg).digest()}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_these_checks_can_fail(name: str) -> None:
    group, test = small(name)
    good = {field: value.hex() if isinstance(value, bytes) else value for field, value in test.items()}
    spoilt = {"aes": "tag", "hkd": "okm", "hma": "tag", "ed2": "sig", "c2s": "msgSha512"}[name[:3]]
    bad = {**good, spoilt: bytes(byte ^ 1 for byte in bytes.fromhex(good[spoilt])).hex()}
    tests = [
        {**good, "tcId": 1, "comment": "says true", "flags": [], "result": "valid"},
        {**bad, "tcId": 2, "comment": "says true", "flags": [], "result": "invalid"},
        {**bad, "tcId": 3, "comment": "a lie", "flags": [], "result": "valid"},
        {**good, "tcId": 4, "comment": "a lie", "flags": [], "result": "invalid"},
        {**bad, "tcId": 5, "comment": "either way", "flags": [], "result": "acceptable"},
    ]
    assert wrong(name, {"testGroups": [{**group, "tests": tests}]}) == (5, [3, 4])
