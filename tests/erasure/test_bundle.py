"""The evidence page: well-formed, alone, escaped, and enough to check the receipt again."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from fedmem import erasure
from fedmem.erasure import Scope, bundle, receipt
from fedmem.errors import VerificationFailed

SEED = bytes(range(32))
PAIR = Ed25519PrivateKey.from_private_bytes(SEED)
KEY = PAIR.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
VOID = {"meta"}
ALLOWED = {
    *("html", "head", "title", "style", "body", "h1", "h2", "p", "strong", "ul", "li", "pre", "details", "summary"),
    *("table", "thead", "tbody", "tr", "th", "td", "meta", "main", "code"),
}
ATTRIBUTES = {"lang", "charset", "http-equiv", "name", "content", "class", "id", "open", "scope"}


class Page(HTMLParser):
    """A page taken apart; raises where a tag is not closed, not known, or reaches outside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.marked: dict[str, str] = {}
        self._at: str | None = None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ALLOWED, tag
        assert {name for name, _ in attrs} <= ATTRIBUTES
        self._at = dict(attrs).get("id")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._at = None

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._at:
            self.marked[self._at] = data

    @property
    def text(self) -> str:
        """All words of the body."""
        return " ".join(" ".join(self.texts).split())


@pytest.fixture
def erased(vaults) -> tuple[Any, Any, bytes, bytes]:
    """(vault, outcome, receipt, key) of an erased topic with a block."""
    vault = vaults.create()
    vault.add_records(vaults.records(3))
    vaults.block(vault)
    planned = erasure.plan(vault, Scope.block(vaults.TOPIC))
    outcome = erasure.execute(vault, planned, planned.digest)
    return vault, outcome, outcome.receipt_path.read_bytes(), (vault.root / "device.pub").read_bytes()


def statement(**said: Any) -> dict[str, Any]:
    return {"_type": receipt.STATEMENT_TYPE, "subject": [], "predicateType": receipt.PREDICATE_TYPE, "predicate": said}


def page(**said: Any) -> str:
    return bundle.page(receipt.sign(statement(**said), SEED), KEY)


def test_it_says_what_a_data_protection_officer_asks(erased, vaults) -> None:
    _, outcome, data, key = erased
    html = bundle.page(data, key)
    found = Page(html)
    said = receipt.verify(data, key)["predicate"]
    for word in (outcome.id, said["executed"], said["vault"], said["plan"], said["scope"]["commitment"]):
        assert word in found.text
    for item in said["erased"]:
        assert item["id"] in found.text
    for store in said["stores"]:
        assert store["name"] in found.text
        assert store["method"] in found.text
    for line in said["not_covered"]:
        assert line in found.text
    assert "crypto-erased" in found.text
    assert "ε = 0.0" in found.text
    assert hashlib.sha256(data).hexdigest() in found.text
    assert bundle.fingerprint(key) in found.text
    assert "none: this is the first receipt" in found.text
    assert "NOT clean" not in found.text
    assert "wiped" not in html
    assert vaults.TOPIC not in html
    assert outcome.opening not in html
    assert html == bundle.page(data, key)


def test_it_stands_alone(erased) -> None:
    html = bundle.page(*erased[2:])
    for word in ("<script", "<link", "<img", "<a ", "href", "src=", "url(", "@import", "javascript:", "on" + "click"):
        assert word not in html.lower()
    assert [
        link for link in re.findall(r"https?://[^\s<\"]*", html) if not link.startswith("https://in-toto.io/")
    ] == []
    assert "default-src 'none'" in html
    assert "@media print" in html


def test_the_page_alone_is_enough_to_check_the_receipt(erased, tmp_path: Path) -> None:
    _, _, data, key = erased
    found = Page(bundle.page(data, key))
    embedded = base64.b64decode(found.marked["receipt"])
    assert embedded == data
    assert receipt.verify(embedded, found.marked["key"].encode())


def test_only_a_receipt_that_verifies_becomes_a_page(erased) -> None:
    _, _, data, key = erased
    changed = json.loads(data)
    changed["payload"] = base64.b64encode(json.dumps(statement()).encode()).decode()
    for file, pem in ((json.dumps(changed).encode(), key), (data, KEY), (data[:-1], key), (data, b"no key")):
        with pytest.raises(VerificationFailed):
            bundle.page(file, pem)


def test_everything_is_escaped() -> None:
    bad = "</td><script>alert(1)</script>\"'&<img src=x onerror=alert(1)>\x1b[31m\u202e"
    html = page(
        wording=bad, erasure=bad, vault=bad, plan=bad, executed=bad, scope={"commitment": bad, "scheme": bad},
        erased=[{"id": bad, "kind": bad}], stores=[{"name": bad, "method": bad, "items": bad, "clean": bad}],
        blocks=[{"id": bad, "outcome": bad, "successor": bad}], not_covered=[bad, 7, None, {bad: bad}],
        residual_epsilon={"epsilon": bad, "reason": bad}, previous=bad, **{"</style>" + bad: bad},
    )  # fmt: skip
    found = Page(html)  # no tag but ours came to be
    assert html.count("<style>") == html.count("</style>") == 1
    assert "alert(1)" in found.text
    assert not set(html) & {"\x1b", "\u202e"}


def test_what_is_not_clean_or_not_bounded_is_said() -> None:
    found = Page(page(stores=[{"name": "database", "method": "m", "items": 2, "clean": False}, {"name": "x"}]))
    assert found.text.count("NOT clean") == 2
    assert "not bounded" in found.text
    bounded = Page(page(residual_epsilon={"epsilon": 3.5, "reason": "two rounds"}))
    assert "ε = 3.5" in bounded.text
    assert "not bounded" not in bounded.text


def test_an_empty_statement_is_a_page_that_says_so() -> None:
    assert Page(page()).text.count("not stated") >= 5


def test_fields_of_a_later_version_are_shown() -> None:
    assert '"kept": [1]' in Page(page(retention={"kept": [1]})).text


@pytest.mark.parametrize("wrong", [{"erased": {}}, {"erased": [7]}, {"stores": "x"}, {"scope": []}, {"wording": None},
                                   {"not_covered": "x"}, {"residual_epsilon": 1.0}, {"blocks": [None]}])  # fmt: skip
def test_a_field_of_unknown_form_is_a_typed_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(VerificationFailed, match="unknown form"):
        page(**wrong)


def test_many_ids_are_folded() -> None:
    few, many = (page(erased=[{"id": f"{i:032x}", "kind": "record"} for i in range(n)]) for n in (3, 41))
    assert "<details open>" in few
    assert "<details open>" not in many
    assert Page(many).text.count("0" * 24) >= 41


def test_the_fingerprint_is_that_of_the_der_key_and_nothing_else_of_the_file_is_shown() -> None:
    der = PAIR.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert bundle.fingerprint(KEY) == hashlib.sha256(der).hexdigest()
    private = PAIR.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    html = bundle.page(receipt.sign(statement(), SEED), KEY + private)
    assert "PRIVATE" not in html
    assert Page(html).marked["key"].encode() == KEY.strip()
