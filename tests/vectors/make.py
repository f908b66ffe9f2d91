"""Write the vectors of container, key table and receipt again: `python tests/vectors/make.py`.

One file is one scenario with the class that reading it must give. Salts are random, so the bytes differ each time:
run this only for a new format version, and keep the old vectors.
"""

import base64
import json
from pathlib import Path
from typing import Any

from fedmem.erasure import receipt
from fedmem.vault import container, keytable

HERE = Path(__file__).parent
KEY = bytes(range(32))
IDENTITY = "block/00112233445566778899aabbccddeeff/b1"
HEADER = {"kind": "block", "id": "b1", "release": "r1", "version": 1, "spec": {"layers": 2, "width": 4, "d_model": 8}}
OK = "ok"


def write(folder: str, name: str, why: str, expect: str, **fields: Any) -> None:
    """One vector; bytes as base64."""
    plain = {k: base64.b64encode(v).decode() if isinstance(v, bytes) else v for k, v in fields.items()}
    text = json.dumps({"why": why, "expect": expect, **plain}, indent=1, sort_keys=True)
    (HERE / folder / f"{name}.json").write_text(text + "\n")


def containers() -> None:
    """Whole, cut, changed and swapped containers."""
    payload = bytes(i % 251 for i in range(16385))
    long, edge = (container.seal(KEY, HEADER, payload[:size], identity=IDENTITY) for size in (16385, 16384))
    good = container.seal(KEY, HEADER, b"rows", identity=IDENTITY)
    start = container.read_header(good)[1]
    other = container.seal(KEY, {**HEADER, "id": "b2"}, b"rows", identity=IDENTITY)
    salted = good[:start] + bytes([good[start] ^ 1]) + good[start + 1 :]
    pack = container.PREFIX.pack
    cases = {
        "two-chunks": ("a payload of more than one chunk", OK, long, payload),
        "one-chunk": ("a short payload", OK, good, b"rows"),
        "empty": ("no payload", OK, container.seal(KEY, {}, b"", identity=IDENTITY), b""),
        "chunk-edge": ("a payload of exactly one chunk", OK, edge, payload[:16384]),
        "cut-in-prefix": ("ends in its first bytes", "TruncatedContainer", good[:10], b""),
        "cut-in-header": ("ends in its header", "TruncatedContainer", good[:30], b""),
        "cut-in-body": ("the last byte is missing", "TruncatedContainer", good[:-1], b""),
        "one-byte-more": ("a byte follows", "ContainerCorrupt", good + b"\x00", b""),
        "not-a-container": ("another magic", "ContainerCorrupt", b"PK\x03\x04" + good[4:], b""),
        "huge-header": ("claims a header of 4 GiB", "ContainerCorrupt", pack(container.MAGIC, 1, 2**32 - 1, 99), b""),
        "huge-body": ("claims a body of 8 EiB", "ContainerCorrupt", pack(container.MAGIC, 1, 2, 2**63) + b"{}", b""),
        "flipped-chunk": ("a bit of the last chunk", "ContainerCorrupt", good[:-1] + bytes([good[-1] ^ 1]), b""),
        "flipped-salt": ("a bit of the salt", "WrongKey", salted, b""),
        "swapped-header": ("the header of another container", "WrongKey", other[:start] + good[start:], b""),
        "format-2": ("a later format", "VersionMismatch", good[:4] + b"\x00\x02" + good[6:], b""),
    }  # fmt: skip
    for name, (why, expect, data, plain) in cases.items():
        write("container", name, why, expect, key=KEY, identity=IDENTITY, container=data, payload=plain)
    write("container", "another-key", "sealed under another key", "WrongKey", key=bytes(32), identity=IDENTITY,
          container=good, payload=b"")  # fmt: skip
    write("container", "another-item", "the identity of another item", "WrongKey", key=KEY, identity=IDENTITY + "x",
          container=good, payload=b"")  # fmt: skip


def keytables() -> None:
    """Payloads of the sealed key table."""
    keys = {"11" * 16: b"a" * 32, "22" * 16: b"b" * 32}
    good = keytable.encode({"subject": "alice", "facts": "0" * 64, "ledger": "11" * 16}, keys)
    rows = {item: key.hex() for item, key in keys.items()}
    write("keytable", "two-rows", "facts and two rows", OK, payload=good, rows=rows)
    write("keytable", "no-rows", "facts alone", OK, payload=keytable.encode({}, {}), rows={})
    write("keytable", "half-row", "the last row is cut", "VerificationFailed", payload=good[:-5], rows={})
    write(
        "keytable", "huge-facts", "claims facts of 4 GiB", "VerificationFailed", payload=b"\xff" * 4 + good[4:], rows={}
    )
    write("keytable", "empty", "nothing at all", "VerificationFailed", payload=b"", rows={})


def receipts() -> None:
    """Signed receipts."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    def pem(seed: bytes) -> bytes:
        public = Ed25519PrivateKey.from_private_bytes(seed).public_key()
        return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    predicate = {"wording": "crypto-erased", "erasure": "33" * 16, "erased": [{"id": "11" * 16, "kind": "record"}]}
    content = {"_type": receipt.STATEMENT_TYPE, "predicateType": receipt.PREDICATE_TYPE, "predicate": predicate,
               "subject": [{"name": "11" * 16, "digest": {"sha256": "0" * 64}}]}  # fmt: skip
    good = receipt.sign(content, KEY)
    changed = json.loads(good)
    changed["payload"] = base64.b64encode(json.dumps(content).replace("record", "block").encode()).decode()
    other = receipt.sign({**content, "predicateType": "https://example.org/other"}, KEY)
    bad = "VerificationFailed"
    write("receipt", "good", "signed by this key", OK, receipt=good, key=pem(KEY), statement=content)
    write("receipt", "another-key", "signed by another device", bad, receipt=good, key=pem(bytes(32)), statement={})
    write(
        "receipt",
        "changed-payload",
        "a changed statement",
        bad,
        receipt=json.dumps(changed).encode(),
        key=pem(KEY),
        statement={},
    )
    write("receipt", "other-statement", "signed, but no erasure", bad, receipt=other, key=pem(KEY), statement={})
    unsigned = json.dumps({**json.loads(good), "signatures": []}).encode()
    write("receipt", "unsigned", "no signature", bad, receipt=unsigned, key=pem(KEY), statement={})


if __name__ == "__main__":
    containers()
    keytables()
    receipts()
