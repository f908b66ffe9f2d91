"""A receipt for people: its fields, and a one-page HTML evidence bundle that carries the receipt itself.

Invariants
- A page is made only of a receipt that verifies; the same receipt and key give the same page.
- The page is one file without script, link or outside resource. Every value of the receipt is escaped, and control
  and direction-changing characters are shown as `?`.
- The receipt and the public key stand in the page in full, so that the file alone can be checked again.
- A field that the receipt does not state is shown as not stated; one that this version does not know is shown too.

    | input | result |
    |---|---|
    | a receipt that does not verify, another key | VerificationFailed, no page |
    | a signed field of another form than a receipt's | VerificationFailed, no page |
    | nothing erased, no store, no ε | a page that says so |

    html = page(file.read_bytes(), key.read_bytes())
"""

import base64
import hashlib
import json
import textwrap
from collections import Counter
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedmem.canonical import digest
from fedmem.erasure import receipt
from fedmem.erasure.planning import Scope
from fedmem.errors import VerificationFailed
from fedmem.markup import Bad, document, folded, lines, pairs, plain, section, table, text

UNSTATED: dict[str, Any] = {
    "wording": "", "erasure": "", "vault": "", "plan": "", "executed": "", "generation": 0,
    "scope": {}, "residual_epsilon": {}, "erased": [], "stores": [], "blocks": [], "not_covered": [],
}  # fmt: skip


def facts(content: Mapping[str, Any]) -> dict[str, Any]:
    """The predicate with every field of a receipt, empty where it states nothing.

    Raises VerificationFailed where a field has another form.
    """
    said: dict[str, Any] = content["predicate"]
    whole = {**UNSTATED, "previous": None, **said}
    rows = [*_list(whole, "erased"), *_list(whole, "stores"), *_list(whole, "blocks")]
    same = all(isinstance(whole[name], type(empty)) for name, empty in UNSTATED.items())
    if not same or not all(isinstance(row, dict) for row in rows):
        raise VerificationFailed(
            "The receipt has a field of unknown form. Update fedmem, or ask for the receipt again."
        )
    return whole


def unknown(said: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `facts` that this version does not know."""
    return {name: value for name, value in said.items() if name not in UNSTATED and name != "previous"}


def fingerprint(public_key_pem: bytes) -> str:
    """SHA-256 in hex of the public key's DER (SubjectPublicKeyInfo). Raises VerificationFailed for another key."""
    key = receipt.public_key(public_key_pem)
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def page(file: bytes, public_key_pem: bytes) -> str:
    """The evidence bundle of a receipt: one HTML page. Raises VerificationFailed where it does not verify."""
    said = facts(receipt.verify(file, public_key_pem))
    parts = [
        *_head(said, fingerprint(public_key_pem)),
        *_erased(said),
        *_stores(said),
        *section("What this erasure does not cover", lines(said["not_covered"])),
        *section("What was ever shared", _residual(said["residual_epsilon"])),
        *_further(unknown(said)),
        *_scope(said["scope"]),
        *_chain(said, file),
        *_embedded(file, public_key_pem),
    ]
    return document(f"Evidence of erasure {plain(said['erasure'])}", parts)


def _head(said: Mapping[str, Any], key: str) -> list[str]:
    return [
        "<h1>Evidence of erasure</h1>",
        "<p>The receipt in this page was checked against the public key named below when the page was made: its "
        "signature held. It speaks of random ids only; it holds no text and no topic name.</p>",
        pairs(
            [
                ("Erasure", said["erasure"]),
                ("Executed", said["executed"]),
                ("Vault", said["vault"]),
                ("State of the vault after it", said["generation"] or ""),
                ("Digest of the plan", said["plan"]),
                ("Signed by the key with SHA-256", key),
            ]
        ),
    ]


def _erased(said: Mapping[str, Any]) -> list[str]:
    counts = sorted(Counter(plain(row.get("kind")) for row in said["erased"]).items())
    told = [
        f"<p>What follows is <strong>{text(said['wording'] or 'erased')}</strong>: the keys that opened it are "
        "destroyed and its sealed bytes are removed. No key that the vault still has opens a copy of them; what the "
        "erasure could not reach stands below.</p>",
        table(("Kind", "Items"), counts),
        folded("Random ids", table(("Kind", "Id"), [(row.get("kind"), row.get("id")) for row in said["erased"]]),
                len(said["erased"])),
    ]  # fmt: skip
    if said["blocks"]:
        rows = [(row.get("id"), row.get("outcome"), row.get("successor")) for row in said["blocks"]]
        told.append("<p>Blocks that had learned an erased record:</p>")
        told.append(table(("Block", "What became of it", "In its place"), rows))
    return ["<h2>What was erased</h2>", *told]


def _stores(said: Mapping[str, Any]) -> list[str]:
    def row(store: Mapping[str, Any]) -> tuple[Any, ...]:
        result = "clean" if store.get("clean") is True else Bad("NOT clean")
        return store.get("name"), store.get("method"), store.get("items", "–"), result

    rows = [row(store) for store in said["stores"]]
    return [
        "<h2>Every place that was searched, after the erasure</h2>",
        table(("Place", "Method", "Items", "Result"), rows),
    ]


def _residual(said: Mapping[str, Any]) -> str:
    epsilon = said.get("epsilon")
    bound = "not bounded" if epsilon is None else f"ε = {plain(epsilon)}"
    return (
        f"<p>Residual privacy loss (differential privacy): <strong>{text(bound)}</strong>. "
        f"Reason: {text(said.get('reason'))}.</p>"
        "<p>ε bounds how much what left the device before the erasure can still tell about a record; 0 means that "
        "nothing of it left.</p>"
    )


def _further(said: Mapping[str, Any]) -> list[str]:
    rows = [(name, json.dumps(value, ensure_ascii=False)) for name, value in sorted(said.items())]
    return section("Further statements", pairs(rows)) if rows else []


def _scope(said: Mapping[str, Any]) -> list[str]:
    command = "fedmem receipt verify receipt.dsse.json --key device.pub --scope block:NAME --opening OPENING_FILE"
    return section(
        "What the request was about",
        "<p>The receipt names the scope by a commitment only, so that it says nothing to others. Who erased holds the "
        "opening, 32 random bytes. With both, anyone can check what the request was about: "
        "HMAC-SHA256, keyed with the opening, of the scope written as canonical JSON gives the commitment; a scope is "
        f"written as {text(Scope.block('NAME').encode().decode())}.</p>"
        + pairs([("Commitment", said.get("commitment")), ("Scheme", said.get("scheme"))])
        + f"<pre>{text(command)}</pre>",
    )


def _chain(said: Mapping[str, Any], file: bytes) -> list[str]:
    before = said["previous"] or "none: this is the first receipt of the vault"
    rows = [("SHA-256 of this receipt", digest(file)), ("SHA-256 of the one before it", before)]
    return section("Place in the chain of receipts", pairs(rows))


def _embedded(file: bytes, public_key_pem: bytes) -> list[str]:
    # Written anew: whatever else the key file holds stays out of the page.
    pem = receipt.public_key(public_key_pem).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    encoded = "\n".join(textwrap.wrap(base64.b64encode(file).decode(), 76))
    steps = (
        "base64 -d receipt.b64 > receipt.dsse.json\n"
        "fedmem receipt verify receipt.dsse.json --key device.pub\n"
        "python verify_receipt.py receipt.dsse.json --key device.pub   # a second program, without fedmem"
    )
    return [
        "<h2>Checking it again</h2>",
        "<p>Save the text under “The receipt” as receipt.b64 and the device's public key as device.pub. Take the key "
        "from where you got it before, or compare its fingerprint with one that the subject gives you: a key that "
        "comes with the evidence proves nothing alone.</p>",
        f"<pre>{text(steps)}</pre>",
        f'<details><summary>The receipt (DSSE envelope, base64)</summary>\n<pre id="receipt">{encoded}</pre></details>',
        f'<details><summary>The public key (PEM)</summary>\n<pre id="key">{pem.decode().strip()}</pre></details>',
    ]


def _list(said: Mapping[str, Any], name: str) -> list[Any]:
    return said[name] if isinstance(said[name], list) else []
