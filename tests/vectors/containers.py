"""Scenarios of the container."""

from typing import Any

from tools import (
    CHUNK,
    CORRUPT,
    CUT,
    IDENTITY,
    KEY,
    MAGIC,
    OK,
    OTHER_KEY,
    OTHER_VAULT,
    PREFIX,
    VAULT,
    WRONG,
    Vectors,
    flip,
    sealed,
)  # fmt: skip

from fedmem.storage.canonical import canonical_json

HEADER = {"kind": "block", "id": "b1", "release": "r1", "version": 1, "spec": {"layers": 2, "width": 4, "d_model": 8}}


def made() -> Vectors:
    """Whole, cut, changed and swapped containers."""
    cases = {**sound(), **cut(), **changed(), **swapped(), **headers()}
    return {
        name: {
            "key": KEY,
            "identity": IDENTITY,
            "payload": b"",
            **more,
            "why": why,
            "expect": expect,
            "container": data,
        }
        for name, (why, expect, data, more) in cases.items()
    }


Case = tuple[str, str, bytes, dict[str, Any]]
PUBLIC = canonical_json(HEADER)
GOOD = sealed("good", PUBLIC, b"rows")
START = PREFIX.size + len(PUBLIC)  # where the body of GOOD begins


def sound() -> dict[str, Case]:
    """Containers that open."""
    payload = bytes(i % 251 for i in range(CHUNK + 1))
    return {
        "two-chunks": ("a payload of more than one chunk", OK, sealed("long", PUBLIC, payload), {"payload": payload}),
        "one-chunk": ("a short payload", OK, GOOD, {"payload": b"rows"}),
        "empty": ("no payload", OK, sealed("empty", b"{}", b""), {}),
        "chunk-edge": ("a payload of exactly one chunk", OK, sealed("edge", PUBLIC, payload[:CHUNK]),
                       {"payload": payload[:CHUNK]}),
    }  # fmt: skip


def cut() -> dict[str, Case]:
    """Too short, too long, and sizes that lie."""
    short = PREFIX.pack(MAGIC, 1, 2, 10) + b"{}" + bytes(10)
    mended = PREFIX.pack(MAGIC, 1, len(PUBLIC), len(GOOD) - START - 1) + GOOD[PREFIX.size : -1]
    return {
        "nothing": ("an empty file", CUT, b"", {}),
        "cut-in-prefix": ("ends in its first bytes", CUT, GOOD[:10], {}),
        "cut-in-header": ("ends in its header", CUT, GOOD[:30], {}),
        "cut-in-body": ("the last byte is missing", CUT, GOOD[:-1], {}),
        "cut-before-body": ("header alone", CUT, GOOD[:START], {}),
        "cut-and-mended": ("the last byte is missing and the length says so", WRONG, mended, {}),
        "body-too-short": ("a body that cannot hold salt and commitment", CUT, short, {}),
        "one-byte-more": ("a byte follows", CORRUPT, GOOD + b"\x00", {}),
        "joined": ("two containers in one file", CORRUPT, GOOD + GOOD, {}),
        "huge-header": ("claims a header of 4 GiB", CORRUPT, PREFIX.pack(MAGIC, 1, 2**32 - 1, 99), {}),
        "header-over-cap": (
            "claims a header of 4,097 bytes",
            CORRUPT,
            PREFIX.pack(MAGIC, 1, 4097, 72) + bytes(4169),
            {},
        ),
        "huge-body": ("claims a body of 8 EiB", CORRUPT, PREFIX.pack(MAGIC, 1, 2, 2**63) + b"{}", {}),
        "body-of-100-gb": ("claims a body of 100 GB", CUT, PREFIX.pack(MAGIC, 1, 2, 100 * 10**9) + b"{}", {}),
    }


def changed() -> dict[str, Case]:
    """One bit or one piece is another."""
    long = sealed("three", PUBLIC, bytes(i % 251 for i in range(2 * CHUNK + 5)))
    first, last = START + 56, START + 56 + 2 * (CHUNK + 16)
    zero, one = long[first : first + CHUNK + 16], long[first + CHUNK + 16 : last]
    return {
        "not-a-container": ("another magic", CORRUPT, b"PK\x03\x04" + GOOD[4:], {}),
        "format-2": ("a later format", "VersionMismatch", GOOD[:4] + b"\x00\x02" + GOOD[6:], {}),
        "flipped-magic": ("a bit of the magic", CORRUPT, flip(GOOD, 0), {}),
        "flipped-format": ("a bit of the format number", "VersionMismatch", flip(GOOD, 4), {}),
        "flipped-header-length": ("a bit of the header's length", CORRUPT, flip(GOOD, 9), {}),
        "flipped-body-length": ("a bit of the body's length", CUT, flip(GOOD, 17), {}),
        "flipped-header": ("a bit of a quotation mark in the header", CORRUPT, flip(GOOD, PREFIX.size + 1), {}),
        "flipped-header-number": ("version 1 in the header becomes 3", WRONG,
                                  GOOD.replace(b'"version":1', b'"version":3'), {}),
        "flipped-salt": ("a bit of the salt", WRONG, flip(GOOD, START), {}),
        "flipped-commitment": ("a bit of the key commitment", WRONG, flip(GOOD, START + 24), {}),
        "flipped-chunk": ("a bit of the last chunk", CORRUPT, flip(GOOD, -1), {}),
        "chunks-reordered": ("the first two chunks of three change places", CORRUPT,
                             long[:first] + one + zero + long[last:], {}),
        "chunk-doubled": ("the first chunk of three stands for the second too", CORRUPT,
                          long[:first] + zero + zero + long[last:], {}),
    }  # fmt: skip


def swapped() -> dict[str, Case]:
    """Sound in themselves, and put where another one belongs."""
    b2 = canonical_json({**HEADER, "id": "b2"})
    newer = {"key": OTHER_KEY, "identity": f"block/{VAULT}/b2"}  # a new version has a new id and a new key
    another = sealed("b2", b2, b"rows", key=OTHER_KEY, identity=newer["identity"])
    return {
        "swapped-header": ("the header of another container", WRONG, GOOD.replace(b'"id":"b1"', b'"id":"b2"'), {}),
        "swapped-block": ("another block of the vault, whole", WRONG, another, {}),
        "older-version": ("the version before, put back where the newer one is expected", WRONG, GOOD, newer),
        "another-vault": ("the same block of another subject's vault", WRONG, GOOD,
                          {"identity": f"block/{OTHER_VAULT}/b1"}),
        "another-key": ("sealed under another key", WRONG, GOOD, {"key": OTHER_KEY}),
        "another-item": ("the identity of another item", WRONG, GOOD, {"identity": IDENTITY + "x"}),
    }  # fmt: skip


def headers() -> dict[str, Case]:
    """Sealed by the right key over a header that no writer of ours makes."""
    cases = {
        "header-spaced": ("JSON that is not canonical", b'{"id": "b1"}'),
        "header-two-ids": ("a name that stands twice", b'{"id":"b1","id":"b2"}'),
        "header-a-list": ("JSON that is no object", b'["b1"]'),
        "header-nan": ("a number that JSON does not have", b'{"id":NaN}'),
        "header-deep": ("nested beyond reason", b"[" * 2048 + b"]" * 2048),
        "header-not-utf-8": ("no text", b'{"id":"\xff"}'),
    }
    return {name: (why, CORRUPT, sealed(name, public, b"rows"), {}) for name, (why, public) in cases.items()}
