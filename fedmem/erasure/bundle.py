"""A receipt for people: its fields, and a one-page HTML evidence bundle that contains the receipt itself.

Invariants
- A page is made only of a receipt that verifies; the same receipt and key give the same page.
- The page is one file without script, link or outside resource. Every value of the receipt is escaped. Control
  characters and direction-changing characters are shown as `?`.
- The page contains the receipt and the public key in full, so that the file alone can be checked again.
- A field that the receipt does not state is shown as not stated. A field that this version does not know is shown too.

    | input | result |
    |---|---|
    | a receipt that does not verify, another key | VerificationFailed, no page |
    | a signed field of another form than a receipt's | VerificationFailed, no page |
    | nothing erased, no store, no ε | a page that says so |

    html = page(file.read_bytes(), key.read_bytes())
"""

import base64
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
from fedmem.vault.crypto import device_key

UNSTATED: dict[str, Any] = {
    "wording": "", "erasure": "", "vault": "", "plan": "", "executed": "", "generation": 0,
    "scope": {}, "items": {}, "residual_epsilon": {}, "erased": [], "stores": [], "blocks": [], "not_covered": [],
}  # fmt: skip


def facts(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the predicate of a statement with every field of a receipt; a field that it does not state is empty.

    Args:
        content: a statement, as `receipt.verify` or `receipt.read` returns it.

    Raises:
        VerificationFailed: a field has another form.
    """
    predicate: dict[str, Any] = content["predicate"]
    fields = {**UNSTATED, "previous": None, **predicate}
    rows = [*_list(fields, "erased"), *_list(fields, "stores"), *_list(fields, "blocks")]
    has_known_types = all(isinstance(fields[name], type(default)) for name, default in UNSTATED.items())
    if not has_known_types or not all(isinstance(row, dict) for row in rows):
        raise VerificationFailed(
            "The receipt has a field of unknown form. Update fedmem, or ask for the receipt again."
        )
    return fields


def counts(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the number of erased items by kind.

    Args:
        fields: the result of `facts`.
    """
    kinds = fields["items"].get("kinds")
    return kinds if isinstance(kinds, dict) else Counter(str(row.get("kind")) for row in fields["erased"])


def unknown(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a receipt that this version does not know, by name.

    Args:
        fields: the result of `facts`.
    """
    return {name: value for name, value in fields.items() if name not in UNSTATED and name != "previous"}


def fingerprint(public_key_pem: bytes) -> str:
    """Return the SHA-256, hex, of a public key's DER (SubjectPublicKeyInfo).

    Args:
        public_key_pem: the device's public key, PEM.

    Raises:
        VerificationFailed: it is no Ed25519 key in PEM.
    """
    receipt.public_key(public_key_pem)
    return device_key.fingerprint(public_key_pem)


def page(file: bytes, public_key_pem: bytes) -> str:
    """Return the evidence bundle of a receipt as one HTML page.

    Args:
        file: the receipt file.
        public_key_pem: the device's public key.

    Raises:
        VerificationFailed: the receipt does not verify, or has a field of another form.
    """
    fields = facts(receipt.verify(file, public_key_pem))
    # Encoded again, so that other content of the key file stays out of the page.
    pem = receipt.public_key(public_key_pem).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    erased = [_stated(row, "kind", "id") for row in fields["erased"]]
    epsilon, reason = _stated(fields["residual_epsilon"], "epsilon", "reason")
    commitment, scheme = _stated(fields["scope"], "commitment", "scheme")
    return rendered(
        "evidence.html.j2",
        **{name: fields[name] or None for name in ("erasure", "executed", "vault", "generation", "plan")},
        wording=fields["wording"] or "erased",
        counts=sorted((printable(kind), count) for kind, count in counts(fields).items()),
        items_root=fields["items"].get("root"),
        erased=erased,
        blocks=[_stated(row, "id", "outcome", "successor") for row in fields["blocks"]],
        stores=[_store(row) for row in fields["stores"]],
        not_covered=fields["not_covered"],
        epsilon=epsilon,
        reason=reason,
        further=[(name, json.dumps(value, ensure_ascii=False)) for name, value in sorted(unknown(fields).items())],
        scope_example=Scope.block("NAME").encode().decode(),
        commitment=commitment,
        scheme=scheme,
        receipt_sha256=digest(file),
        previous=fields["previous"] or "none: this is the first receipt of the vault",
        receipt_base64="\n".join(textwrap.wrap(base64.b64encode(file).decode(), 76)),
        key_sha256=fingerprint(public_key_pem),
        key_pem=pem.decode().strip(),
    )


def _stated(row: Mapping[str, Any], *names: str) -> list[Any]:
    """Return the named values of a row; None for a value that is not stated."""
    return [None if row.get(name) == "" else row.get(name) for name in names]


def _store(row: Mapping[str, Any]) -> list[Any]:
    verdict = Cell("clean") if row.get("clean") is True else Cell("NOT clean", "bad")
    return [*_stated({"items": "–", **row}, "name", "method", "items"), verdict]


def _list(fields: Mapping[str, Any], name: str) -> list[Any]:
    return fields[name] if isinstance(fields[name], list) else []
