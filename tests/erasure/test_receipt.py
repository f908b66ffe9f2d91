"""Receipts: checkable with file and key alone, chained, and silent about what was erased."""

import base64
import hashlib
import hmac
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from fedmem import erasure
from fedmem.canonical import canonical_json
from fedmem.erasure import Scope, receipt
from fedmem.errors import VerificationFailed

SEED = bytes(range(32))


def pem(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


KEY = pem(ed25519.Ed25519PrivateKey.from_private_bytes(SEED))


@pytest.fixture
def erased(vaults):
    """(vault, outcome, receipt bytes) of an erased topic."""
    vault = vaults.create()
    vault.add_records(vaults.records(3))
    vaults.block(vault)
    planned = erasure.plan(vault, Scope.block(vaults.TOPIC))
    outcome = erasure.execute(vault, planned, planned.digest)
    return vault, outcome, outcome.receipt_path.read_bytes()


def test_it_is_an_in_toto_statement_about_random_ids(erased, vaults) -> None:
    vault, outcome, data = erased
    statement = receipt.verify(data, (vault.root / "device.pub").read_bytes())
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert len(statement["subject"]) == 1 + 1 + 3 + 1  # container, its facts, records, run
    assert all(len(subject["digest"]["sha256"]) == 64 for subject in statement["subject"])
    predicate = statement["predicate"]
    assert (predicate["wording"], predicate["erasure"], predicate["previous"]) == ("crypto-erased", outcome.id, None)
    assert {store["name"] for store in predicate["stores"]} == {
        "key-table",
        "block-files",
        "database",
        "files-under-root",
    }
    assert all(store["clean"] for store in predicate["stores"])
    assert predicate["not_covered"]
    assert predicate["residual_epsilon"]["epsilon"] == 0.0
    text = base64.b64decode(json.loads(data)["payload"]).decode()
    assert vaults.TOPIC not in text
    assert "wiped" not in text


def test_the_scope_opens_with_the_opening_and_not_without(erased, vaults) -> None:
    vault, outcome, data = erased
    scope = receipt.verify(data, (vault.root / "device.pub").read_bytes())["predicate"]["scope"]
    told = Scope.block(vaults.TOPIC).encode()
    assert hmac.new(bytes.fromhex(outcome.opening), told, hashlib.sha256).hexdigest() == scope["commitment"]
    assert hashlib.sha256(told).hexdigest() not in data.decode()
    assert erasure.residue.scan(vaults.base, {"opening": bytes.fromhex(outcome.opening)}) == []
    assert erasure.residue.scan(vaults.base, {"opening": outcome.opening.encode()}) == []


def test_a_second_reader_of_dsse_agrees(erased) -> None:
    vault, _, data = erased
    envelope = json.loads(data)
    payload = base64.b64decode(envelope["payload"])
    kind = envelope["payloadType"].encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    key = load_pem_public_key((vault.root / "device.pub").read_bytes())
    assert isinstance(key, ed25519.Ed25519PublicKey)
    key.verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed)


def test_receipts_are_chained_and_survive_a_later_erasure(erased, vaults) -> None:
    vault, _, first = erased
    vault.add_records(vaults.records(1, topic="second"))
    planned = erasure.plan(vault, Scope.topic("second"))
    outcome = erasure.execute(vault, planned, planned.digest)
    key = (vault.root / "device.pub").read_bytes()
    statement = receipt.verify(outcome.receipt_path.read_bytes(), key)
    assert statement["predicate"]["previous"] == hashlib.sha256(first).hexdigest()
    assert receipt.verify(first, key)


def test_what_was_ever_shared_is_stated(erased, vaults) -> None:
    vault, _, _ = erased
    vault.add_records(vaults.records(1, topic=None))
    planned = erasure.plan(vault, Scope.everything())
    outcome = erasure.execute(vault, planned, planned.digest, residual={"epsilon": 3.5, "reason": "two rounds"})
    statement = receipt.verify(outcome.receipt_path.read_bytes(), (vault.root / "device.pub").read_bytes())
    assert statement["predicate"]["residual_epsilon"] == {"epsilon": 3.5, "reason": "two rounds"}


def test_shared_records_are_not_called_bounded_by_default(vaults) -> None:
    vault = vaults.create()
    vault.add_records(vaults.records(1, topic=None))
    planned = erasure.plan(vault, Scope.everything())
    data = erasure.execute(vault, planned, planned.digest).receipt_path.read_bytes()
    residual = receipt.verify(data, (vault.root / "device.pub").read_bytes())["predicate"]["residual_epsilon"]
    assert residual["epsilon"] is None
    assert residual["reason"]


def content(**changes: object) -> dict:
    return {"_type": receipt.STATEMENT_TYPE, "subject": [], "predicateType": receipt.PREDICATE_TYPE, "predicate": {},
            **changes}  # fmt: skip


def test_every_changed_byte_is_noticed() -> None:
    data = receipt.sign(content(), SEED)
    assert receipt.verify(data, KEY) == content()
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        try:
            assert receipt.verify(changed, KEY) == content()  # a spare bit of base64 or a space says nothing else
        except VerificationFailed:
            continue


def test_another_key_or_kind_of_key() -> None:
    data = receipt.sign(content(), SEED)
    others = [pem(ed25519.Ed25519PrivateKey.generate()), pem(ec.generate_private_key(ec.SECP256R1())), b"", b"no pem"]
    for other in others:
        with pytest.raises(VerificationFailed):
            receipt.verify(data, other)


@pytest.mark.parametrize("wrong", [{"_type": "x"}, {"predicateType": "x"}])
def test_a_signed_statement_about_something_else(wrong: dict) -> None:
    with pytest.raises(VerificationFailed, match="not a statement about an erasure"):
        receipt.verify(receipt.sign(content(**wrong), SEED), KEY)


def test_envelopes_of_the_wrong_form() -> None:
    good = json.loads(receipt.sign(content(), SEED))
    bad = [
        {**good, "signatures": []},
        {**good, "signatures": good["signatures"] * 2},
        {**good, "signatures": [*good["signatures"], {"keyid": "x", "sig": "AAAA"}]},
        {**good, "signatures": [{"keyid": 1, "sig": None}]},
        {**good, "payloadType": "text/plain"},
        {**good, "payload": 7},
        {},
        [],
        None,
        "text",
    ]
    for envelope in [*map(canonical_json, bad), b"", b"{", b"\xff", b"[" * 100_000]:
        with pytest.raises(VerificationFailed):
            receipt.verify(envelope, KEY)


def test_an_oversized_file_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipt, "LIMIT", 10)
    with pytest.raises(VerificationFailed, match="larger"):
        receipt.verify(b"x" * 11, KEY)
