"""Sealed bytes: the container `.fmb` and sealed cells, both over C2SP chunked encryption (Cobblestone-256).

Layout: magic (4) | version u16 | header length u32 | body length u64 | header, canonical JSON | body.

Invariants
- The body is bound to every byte before it and to the item's identity: a swapped header or item does not open.
- Sizes are checked against the real size and a fixed cap before anything is allocated.
- The header is public: random ids, spec, release, version. No topic name and no text.
- A wrong key is told apart from damage by the key commitment.

Guarantees
    Cobblestone-256 (C2SP chunked-encryption): 24-byte salt, 32-byte key commitment, 16 KiB AES-256-GCM chunks;
    confidentiality, integrity of order and end, and key commitment, for a uniformly random 32-byte key.

    | input | result |
    |---|---|
    | empty payload | a valid container |
    | file shorter than it says | TruncatedContainer |
    | file longer than it says, a flipped bit in the chunks, chunks in another order | ContainerCorrupt |
    | another key, another item's body, a swapped or changed header | WrongKey |
    | header or body that claims an absurd size | ContainerCorrupt, nothing allocated |

>>> sealed = seal(bytes(32), {"id": "b1"}, b"rows", identity="block/b1")
>>> unseal(bytes(32), sealed, identity="block/b1")[1]
b'rows'
"""

import json
import struct
from typing import Any

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag

from fedmem.errors import UsageError, VerificationFailed, VersionMismatch
from fedmem.storage.canonical import canonical_json

MAGIC = b"FMB\x00"
VERSION = 1
SALT_BYTES = 24
PREFIX = struct.Struct(">4sHIQ")
MAX_HEADER = 4096
MAX_BODY = 1 << 40
_COMMITTED = SALT_BYTES + 32  # salt and key commitment come before the first chunk
_CELL = b"fedmem/cell/1\x00"


class ContainerCorrupt(VerificationFailed):
    """The bytes are not a container of ours, or were changed."""


class TruncatedContainer(ContainerCorrupt):
    """The file ends before it says."""


class WrongKey(VerificationFailed):
    """The container was sealed under another key."""


def new_key() -> bytes:
    """A fresh 32-byte data key from the operating system's generator."""
    return Cobblestone256Encryptor.generate_key()


def seal_cell(key: bytes, data: bytes, *, identity: str) -> bytes:
    """Seal `data` for one database cell, bound to `identity`: salt, commitment, chunks; no header."""
    return _encrypt(key, _CELL + identity.encode(), data)


def open_cell(key: bytes, sealed: bytes, *, identity: str) -> bytes:
    """Open what `seal_cell` made. Raises WrongKey, TruncatedContainer or ContainerCorrupt."""
    return _decrypt(key, _CELL + identity.encode(), sealed, identity.split("/")[0])


def seal(key: bytes, header: dict[str, Any], payload: bytes, *, identity: str) -> bytes:
    """A container with a public `header` and a sealed `payload`."""
    public = canonical_json(header)
    if len(public) > MAX_HEADER:
        raise UsageError("A container header holds at most 4096 bytes. Shorten the release name.")
    # Salt and commitment once, then a 16-byte tag per 16 KiB chunk; the last chunk is short and may be empty.
    body_length = _COMMITTED + len(payload) + 16 * (len(payload) // 16384 + 1)
    prefix = PREFIX.pack(MAGIC, VERSION, len(public), body_length) + public
    return prefix + _encrypt(key, prefix + identity.encode(), payload)


def read_header(data: bytes, *, whole: bool = True) -> tuple[dict[str, Any], int]:
    """The public header and the offset of the body, without any key.

    Args:
        data: the container, or at least its first `PREFIX.size + MAX_HEADER` bytes.
        whole: whether `data` is all of it, so that its size can be checked.

    Raises:
        TruncatedContainer, ContainerCorrupt, VersionMismatch.
    """
    if len(data) < PREFIX.size:
        raise TruncatedContainer("The container ends inside its first 18 bytes. Restore it from a backup.")
    magic, version, header_length, body_length = PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise ContainerCorrupt("This is not a fedmem container. Restore it from a backup.")
    if version != VERSION:
        raise VersionMismatch(f"The container has format {version}; this fedmem reads {VERSION}. Update fedmem.")
    if header_length > MAX_HEADER or body_length > MAX_BODY:
        raise ContainerCorrupt("The container claims a size that no container has. Restore it from a backup.")
    start = PREFIX.size + header_length
    if len(data) < (start + body_length if whole else start):
        raise TruncatedContainer("The container ends before it says. Restore it from a backup.")
    if whole and len(data) > start + body_length:
        raise ContainerCorrupt("The container is longer than it says. Restore it from a backup.")
    return _parse_header(data[PREFIX.size : start]), start


def unseal(key: bytes, data: bytes, *, identity: str) -> tuple[dict[str, Any], bytes]:
    """Open a container: (public header, payload).

    Raises:
        TruncatedContainer, ContainerCorrupt, WrongKey, VersionMismatch.
    """
    header, start = read_header(data)
    return header, _decrypt(key, data[:start] + identity.encode(), data[start:], "container")


def body_salt(data: bytes) -> bytes:
    """The salt of a container: 24 random bytes that occur in no other file."""
    start = read_header(data)[1]
    return data[start : start + SALT_BYTES]


def _parse_header(public: bytes) -> dict[str, Any]:
    try:
        header = json.loads(public)
        canonical = canonical_json(header) == public
    except (ValueError, RecursionError):
        canonical = False
    if not canonical or not isinstance(header, dict):
        raise ContainerCorrupt("The container's header is damaged. Restore it from a backup.")
    return header


def _encrypt(key: bytes, context: bytes, data: bytes) -> bytes:
    encryptor = Cobblestone256Encryptor(key, context)
    return encryptor.update(data) + encryptor.finalize()


def _decrypt(key: bytes, context: bytes, sealed: bytes, what: str) -> bytes:
    if len(sealed) < _COMMITTED:
        raise TruncatedContainer(f"A sealed {what} ends too early. Restore it from a backup.")
    decryptor = Cobblestone256Decryptor(key, context)
    try:
        decryptor.update(sealed[:_COMMITTED])
    except InvalidTag:
        raise WrongKey(f"A sealed {what} does not open with its key. Restore it from a backup.") from None
    try:
        return decryptor.update(memoryview(sealed)[_COMMITTED:]) + decryptor.finalize()
    except InvalidTag:
        raise ContainerCorrupt(f"A sealed {what} was changed or cut. Restore it from a backup.") from None
