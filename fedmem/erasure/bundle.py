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

from fedmem.erasure import receipt
from fedmem.erasure.planning import Scope
from fedmem.errors import VerificationFailed
from fedmem.pages import Cell, printable, rendered
from fedmem.storage.canonical import digest

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
    # Written anew: whatever else the key file holds stays out of the page.
    pem = receipt.public_key(public_key_pem).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    erased = [_stated(row, "kind", "id") for row in said["erased"]]
    epsilon, reason = _stated(said["residual_epsilon"], "epsilon", "reason")
    commitment, scheme = _stated(said["scope"], "commitment", "scheme")
    return rendered(
        "evidence.html.j2",
        **{name: said[name] or None for name in ("erasure", "executed", "vault", "generation", "plan")},
        wording=said["wording"] or "erased",
        counts=sorted(Counter(printable(kind) for kind, _ in erased).items()),
        erased=erased,
        blocks=[_stated(row, "id", "outcome", "successor") for row in said["blocks"]],
        stores=[_store(row) for row in said["stores"]],
        not_covered=said["not_covered"],
        epsilon=epsilon,
        reason=reason,
        further=[(name, json.dumps(value, ensure_ascii=False)) for name, value in sorted(unknown(said).items())],
        scope_example=Scope.block("NAME").encode().decode(),
        commitment=commitment,
        scheme=scheme,
        receipt_sha256=digest(file),
        previous=said["previous"] or "none: this is the first receipt of the vault",
        receipt_base64="\n".join(textwrap.wrap(base64.b64encode(file).decode(), 76)),
        key_sha256=fingerprint(public_key_pem),
        key_pem=pem.decode().strip(),
    )


def _stated(row: Mapping[str, Any], *names: str) -> list[Any]:
    """The values of a row; None where it states nothing."""
    return [None if row.get(name) == "" else row.get(name) for name in names]


def _store(row: Mapping[str, Any]) -> list[Any]:
    result = Cell("clean") if row.get("clean") is True else Cell("NOT clean", "bad")
    return [*_stated({"items": "–", **row}, "name", "method", "items"), result]


def _list(said: Mapping[str, Any], name: str) -> list[Any]:
    return said[name] if isinstance(said[name], list) else []
