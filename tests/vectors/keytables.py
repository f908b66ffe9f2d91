"""Scenarios of the key table: its payload, and whole tables under their epoch key."""

from collections.abc import Mapping
from typing import Any

from containers import GOOD as BLOCK
from tools import BAD, CORRUPT, CUT, KEY, MAGIC, OK, OTHER_KEY, OTHER_VAULT, PREFIX, VAULT, WRONG, Vectors, flip, sealed

from fedmem.storage.canonical import canonical_json
from fedmem.vault.crypto import key_table as keytable


def made() -> Vectors:
    """Payloads of the key table, and whole tables under their epoch key."""
    keys = {"11" * 16: b"a" * 32, "22" * 16: b"b" * 32}
    good = keytable.encode({"subject": "alice", "facts": "0" * 64, "ledger": "11" * 16}, keys)
    rows = {item: key.hex() for item, key in keys.items()}
    payloads: dict[str, tuple[str, str, bytes, dict[str, str]]] = {
        "two-rows": ("facts and two rows", OK, good, rows),
        "no-rows": ("facts alone", OK, keytable.encode({}, {}), {}),
        "half-row": ("the last row is cut", BAD, good[:-5], {}),
        "half-facts": ("ends in its facts", BAD, good[:20], {}),
        "huge-facts": ("claims facts of 4 GiB", BAD, b"\xff" * 4 + good[4:], {}),
        "empty": ("nothing at all", BAD, b"", {}),
    }
    found: Vectors = {
        name: {"why": why, "expect": expect, "payload": payload, "rows": held}
        for name, (why, expect, payload, held) in payloads.items()
    }
    return {**found, **tables(good, rows)}


def tables(payload: bytes, rows: dict[str, str]) -> Vectors:
    """Whole tables: vault `VAULT` is at epoch 2; the key of epoch 1 was destroyed by an erasure."""
    numbers = {"epoch": 2, "generation": 1, "serial": 3}

    def table(salt: str, more: Mapping[str, Any], *, key: bytes = KEY, held: bytes = payload) -> bytes:
        public = {"kind": "keytable", "vault": VAULT, **more}
        return sealed(salt, canonical_json(public), held, key=key, identity=f"keytable/{VAULT}")

    good = table("table", numbers)
    older = table("older", {**numbers, "epoch": 1, "generation": 0}, key=OTHER_KEY)
    claim = PREFIX.pack(MAGIC, 1, 2, 100 * 10**9) + b"{}"
    cases: dict[str, tuple[str, str, bytes, dict[str, Any]]] = {
        "table": ("facts and two rows at epoch 2", OK, good, {"rows": rows}),
        "table-of-an-older-epoch": ("the table before the erasure; its epoch key is gone", "KeystoreError", older, {}),
        "table-relabelled": ("the older table says that it is of epoch 2", WRONG,
                             older.replace(b'"epoch":1', b'"epoch":2'), {}),
        "table-of-another-vault": ("another subject's vault", WRONG, good, {"vault": OTHER_VAULT}),
        "table-under-another-key": ("the keystore holds another key", WRONG, good, {"keys": {"epoch-2": b"k" * 32}}),
        "table-generation-changed": ("the generation before the erasure", WRONG,
                                     good.replace(b'"generation":1', b'"generation":0'), {}),
        "table-cut": ("the last byte is missing", CUT, good[:-1], {}),
        "table-flipped": ("a bit of the last row", CORRUPT, flip(good, -20), {}),
        "table-half-row": ("sealed with half a row", BAD, table("half", numbers, held=payload[:-5]), {}),
        "table-without-numbers": ("no epoch in the header", CORRUPT, table("bare", {}), {}),
        "table-with-a-switch": ("true for a generation", CORRUPT, table("true", {**numbers, "generation": True}), {}),
        "table-before-zero": ("a negative epoch", CORRUPT, table("minus", {**numbers, "epoch": -1}), {}),
        "table-a-block": ("a block's container in its place", CORRUPT, BLOCK, {}),
        "table-of-100-gb": ("claims a body of 100 GB", CUT, claim, {}),
        "table-of-format-2": ("a later format", "VersionMismatch", good[:4] + b"\x00\x02" + good[6:], {}),
    }  # fmt: skip
    return {
        name: {
            "vault": VAULT,
            "keys": {"epoch-2": KEY},
            "rows": {},
            **more,
            "why": why,
            "expect": expect,
            "table": data,
        }
        for name, (why, expect, data, more) in cases.items()
    }
