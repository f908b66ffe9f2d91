"""Receipts: checkable with file and key alone, chained, and silent about what was erased."""

import base64
import hashlib
import hmac
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from fedmem import erasure
from fedmem.erasure import Scope, receipt
from fedmem.errors import VerificationFailed
from fedmem.storage.canonical import canonical_json

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
    named = {store["name"] for store in predicate["stores"]}
    assert named == {store.name for store in vault.stores}
    assert named >= {"key-table", "block-files", "database"}
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
    planned = erasure.plan(vault, Scope.subject())
    outcome = erasure.execute(vault, planned, planned.digest, residual={"epsilon": 3.5, "reason": "two rounds"})
    statement = receipt.verify(outcome.receipt_path.read_bytes(), (vault.root / "device.pub").read_bytes())
    assert statement["predicate"]["residual_epsilon"] == {"epsilon": 3.5, "reason": "two rounds"}


def test_shared_records_are_not_called_bounded_by_default(vaults) -> None:
    vault = vaults.create()
    vault.add_records(vaults.records(1, topic=None))
    planned = erasure.plan(vault, Scope.subject())
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


@pytest.mark.parametrize(
    "wrong",
    [{"predicate": None}, {"predicate": []}, {"subject": None}, {"subject": [{"name": "x"}]}, {"subject": ["x"]}],
)
def test_a_signed_statement_without_what_in_toto_asks_for(wrong: dict) -> None:
    data = receipt.sign(content(**wrong), SEED)
    for check in (receipt.read, lambda file: receipt.verify(file, KEY)):
        with pytest.raises(VerificationFailed, match="not a statement about an erasure"):
            check(data)


def test_reading_asks_for_no_key_and_still_for_the_form() -> None:
    data = receipt.sign(content(), SEED)
    unsigned = json.loads(data)
    unsigned["signatures"][0]["sig"] = "AAAA"
    assert receipt.read(data) == receipt.read(canonical_json(unsigned)) == content()
    for damaged in (b"", b"{}", b"\xff", data[:-1], b"[" * 100_000):
        with pytest.raises(VerificationFailed):
            receipt.read(damaged)


def test_the_hint_of_a_key_decides_nothing() -> None:
    envelope = json.loads(receipt.sign(content(), SEED))
    envelope["signatures"][0]["keyid"] = "another"
    assert receipt.verify(canonical_json(envelope), KEY) == content()
    del envelope["signatures"][0]["keyid"]
    assert receipt.verify(canonical_json(envelope), KEY) == content()
    with pytest.raises(VerificationFailed):
        receipt.verify(canonical_json(envelope), pem(ed25519.Ed25519PrivateKey.generate()))


def test_additions_of_an_erasure_stand_in_its_statement(erased) -> None:
    vault, outcome, _ = erased
    (entry,) = erasure.journal.read_all(vault)
    checked = erasure.verify(vault, outcome.id)
    plain = receipt.statement(vault.id, entry, vault.stores, checked, "")["predicate"]
    assert "blocks" not in plain
    fate = {"id": "11" * 16, "outcome": "retrained", "successor": "22" * 16}
    said = receipt.statement(vault.id, entry, vault.stores, checked, "", not_covered=["backup 33"], blocks=[fate])
    assert said["predicate"]["not_covered"] == [*plain["not_covered"], "backup 33"]
    assert said["predicate"]["blocks"] == [fate]


def test_a_commitment_opens_to_its_scope_and_to_no_other(erased, vaults) -> None:
    vault, outcome, data = erased
    statement = receipt.verify(data, (vault.root / "device.pub").read_bytes())
    opening = bytes.fromhex(outcome.opening)
    assert receipt.opens(statement, Scope.block(vaults.TOPIC), opening)
    for scope in (Scope.topic(vaults.TOPIC), Scope.block("other"), Scope.subject()):
        assert not receipt.opens(statement, scope, opening)
    assert not receipt.opens(statement, Scope.block(vaults.TOPIC), bytes(32))
    for held in ({}, {"scope": None}, {"scope": {"commitment": 7}}, {"scope": {"commitment": "é"}}, {"scope": {}}):
        assert not receipt.opens(content(predicate=held), Scope.block(vaults.TOPIC), opening)


@pytest.fixture
def chain(vaults) -> tuple[list[bytes], bytes]:
    """The receipts of three erasures of one vault, oldest first, and its public key."""
    vault = vaults.create()
    files = []
    for topic in ("one", "two", "three"):
        vault.add_records(vaults.records(1, topic=topic))
        planned = erasure.plan(vault, Scope.topic(topic))
        files.append(erasure.execute(vault, planned, planned.digest).receipt_path.read_bytes())
    return files, (vault.root / "device.pub").read_bytes()


def test_the_chain_of_a_vault_holds(chain: tuple[list[bytes], bytes]) -> None:
    files, key = chain
    statements = receipt.verify_chain(files, key)
    assert statements == [receipt.verify(file, key) for file in files]
    assert receipt.verify_chain(files[:1], key) == statements[:1]
    assert receipt.verify_chain([], key) == []


@pytest.mark.parametrize(
    ("order", "link"),
    [
        ((1, 2), "breaks before receipt 1"),  # the first is missing
        ((0, 2), "between receipt 1 and receipt 2"),  # the second is missing
        ((0, 2, 1), "between receipt 1 and receipt 2"),  # another order
        ((2, 1, 0), "breaks before receipt 1"),
        ((0, 0, 1, 2), "between receipt 1 and receipt 2"),  # repeated
        ((0, 1, 2, 2), "between receipt 3 and receipt 4"),
        ((0, 1, 2, 0), "between receipt 3 and receipt 4"),
    ],
)
def test_a_chain_that_breaks_names_the_link(
    chain: tuple[list[bytes], bytes], order: tuple[int, ...], link: str
) -> None:
    files, key = chain
    with pytest.raises(VerificationFailed, match=link):
        receipt.verify_chain([files[one] for one in order], key)


def test_a_chain_with_a_changed_receipt_names_it(chain: tuple[list[bytes], bytes]) -> None:
    files, key = chain
    envelope = json.loads(files[1])
    spaced = json.dumps(envelope).encode()  # the same words in other bytes: signed, and no longer what was named
    assert receipt.verify(spaced, key)
    with pytest.raises(VerificationFailed, match="between receipt 2 and receipt 3"):
        receipt.verify_chain([files[0], spaced, files[2]], key)
    envelope["payload"] = base64.b64encode(b"{}").decode()
    with pytest.raises(VerificationFailed, match="Receipt 2 of 3"):
        receipt.verify_chain([files[0], json.dumps(envelope).encode(), files[2]], key)
