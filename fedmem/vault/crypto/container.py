"""Sealed bytes: the container `.fmb` and sealed cells. Both use C2SP chunked encryption (Cobblestone-256).

Layout: magic (4) | version u16 | header length u32 | body length u64 | header, canonical JSON | body.

Invariants
- The body is bound to all bytes before it and to the item's identity. A container with a swapped header, or the
  container of another item, does not open.
- Sizes in the file are checked against the real size and a fixed limit before memory is allocated.
- The header is public: random ids, spec, release, version. It holds no topic name and no text.
- The key commitment distinguishes a wrong key from damage.
- Content is decrypted into a `PrivateBuffer`. No copy of it stays in the heap after the buffer is dropped; the cipher
  leaves its last block, 16 bytes, on the stack.

Guarantees
    Cobblestone-256 (C2SP chunked-encryption): 24-byte salt, 32-byte key commitment, 16 KiB AES-256-GCM chunks;
    confidentiality, integrity of order and end, and key commitment, for a uniformly random 32-byte key.

    | input | result |
    |---|---|
    | empty payload | a valid container |
    | a file shorter than its size fields say | TruncatedContainer |
    | a file longer than its size fields say, a flipped bit in the chunks, chunks in another order | ContainerCorrupt |
    | another key, another item's body, a swapped or changed header | WrongKey |
    | a size field above the limit | ContainerCorrupt, no memory allocated |

>>> sealed = seal(bytes(32), {"id": "b1"}, b"rows", identity="block/b1")
>>> unseal(bytes(32), sealed, identity="block/b1")[1]
PrivateBuffer(4 bytes)
"""

import json
import struct
from typing import Any

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag

from fedmem.errors import UsageError, VerificationFailed, VersionMismatch
from fedmem.storage.canonical import canonical_json
from fedmem.storage.private_memory import PrivateBuffer, Readable, overwrite_bytes

MAGIC = b"FMB\x00"
VERSION = 1
SALT_BYTES = 24
PREFIX = struct.Struct(">4sHIQ")
MAX_HEADER = 4096
MAX_BODY = 1 << 40
_COMMITTED = SALT_BYTES + 32  # salt and key commitment come before the first chunk
_CHUNK, _TAG = 16384, 16
_CELL = b"fedmem/cell/1\x00"


class ContainerCorrupt(VerificationFailed):
    """An error: the bytes are not a fedmem container, or they were changed."""


class TruncatedContainer(ContainerCorrupt):
    """An error: the file is shorter than its size fields say."""


class WrongKey(VerificationFailed):
    """An error: the container was sealed under another key."""


def new_key() -> bytes:
    """Return a new 32-byte data key from the operating system's random generator."""
    return Cobblestone256Encryptor.generate_key()


def seal_cell(key: Readable, data: Readable, *, identity: str) -> bytes:
    """Seal `data` for one database cell, bound to `identity`.

    Guarantees
        As the module says. The result is the salt, the key commitment and the chunks; it has no header.
        The same data sealed twice gives different bytes.

    Args:
        key: 32 uniformly random bytes.
        data: any length, also empty.
        identity: kind and id of the cell; `open_cell` needs the same one.
    """
    return _encrypt(key, _CELL + identity.encode(), data)


def open_cell(key: Readable, sealed: bytes, *, identity: str) -> PrivateBuffer:
    """Open a sealed cell and return its data.

    Args:
        key: the 32 bytes that sealed it.
        identity: the one that sealed it.

    Raises:
        WrongKey: another key or identity. TruncatedContainer: the cell is cut. ContainerCorrupt: it was changed.
    """
    return _decrypt(key, _CELL + identity.encode(), sealed, identity.split("/")[0])


def seal(key: Readable, header: dict[str, Any], payload: Readable, *, identity: str) -> bytes:
    """Return a container with a public `header` and a sealed `payload`.

    Guarantees
        As the module says: the payload is encrypted, and bound to the header, to `identity` and to the key.

    Args:
        key: 32 uniformly random bytes.
        header: public facts that JSON can represent; at most 4096 bytes as canonical JSON.
        payload: any length, also empty.
        identity: kind and id of the item; `unseal` needs the same one.

    Raises:
        UsageError: the header is too long.
    """
    header_bytes = canonical_json(header)
    if len(header_bytes) > MAX_HEADER:
        raise UsageError("A container header holds at most 4096 bytes. Shorten the release name.")
    # Salt and key commitment, then a 16-byte tag for each 16 KiB chunk; the last chunk is shorter and may be empty.
    body_length = _COMMITTED + len(payload) + _TAG * (len(payload) // _CHUNK + 1)
    prefix = PREFIX.pack(MAGIC, VERSION, len(header_bytes), body_length) + header_bytes
    return prefix + _encrypt(key, prefix + identity.encode(), payload)


def read_header(data: bytes, *, whole: bool = True) -> tuple[dict[str, Any], int]:
    """Return the public header and the byte offset of the body. This needs no key.

    Args:
        data: the container, or at least its first `PREFIX.size + MAX_HEADER` bytes.
        whole: True if `data` is the complete container; its size is then checked.

    Raises:
        TruncatedContainer: `data` is too short. ContainerCorrupt: not a container, or damaged.
        VersionMismatch: another version of the format.
    """
    if len(data) < PREFIX.size:
        raise TruncatedContainer("The container ends inside its first 18 bytes. Restore it from a backup.")
    magic, version, header_length, body_length = PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise ContainerCorrupt("This is not a fedmem container. Restore it from a backup.")
    if version != VERSION:
        raise VersionMismatch(f"The container has format {version}; this fedmem reads {VERSION}. Update fedmem.")
    if header_length > MAX_HEADER or body_length > MAX_BODY:
        raise ContainerCorrupt("The container has an impossible size in its first 18 bytes. Restore it from a backup.")
    start = PREFIX.size + header_length
    if len(data) < (start + body_length if whole else start):
        raise TruncatedContainer("The container is shorter than its size fields say. Restore it from a backup.")
    if whole and len(data) > start + body_length:
        raise ContainerCorrupt("The container is longer than its size fields say. Restore it from a backup.")
    return _parse_header(data[PREFIX.size : start]), start


def unseal(key: Readable, data: bytes, *, identity: str) -> tuple[dict[str, Any], PrivateBuffer]:
    """Open a container and return its public header and its payload.

    Guarantees
        A result is exactly what `seal` was given with this key and identity. The module's table lists the edge cases.

    Args:
        key: the 32 bytes that sealed it.
        data: the complete container.
        identity: the one that sealed it.

    Raises:
        WrongKey: another key, header or identity. TruncatedContainer, ContainerCorrupt: cut or changed.
        VersionMismatch: another version of the format.
    """
    header, start = read_header(data)
    return header, _decrypt(key, data[:start] + identity.encode(), data[start:], "container")


def body_salt(data: bytes) -> bytes:
    """Return the salt of a container. This needs no key.

    Args:
        data: the complete container.

    Returns:
        24 random bytes, different in each container.

    Raises:
        TruncatedContainer, ContainerCorrupt, VersionMismatch: as `read_header`.
    """
    start = read_header(data)[1]
    return data[start : start + SALT_BYTES]


def _parse_header(header_bytes: bytes) -> dict[str, Any]:
    try:
        header = json.loads(header_bytes)
        is_canonical = canonical_json(header) == header_bytes
    except (ValueError, RecursionError):
        is_canonical = False
    if not is_canonical or not isinstance(header, dict):
        raise ContainerCorrupt("The container's header is damaged. Restore it from a backup.")
    return header


def _encrypt(key: Readable, context: bytes, data: Readable) -> bytes:
    encryptor = Cobblestone256Encryptor(key, context)
    return encryptor.update(data) + encryptor.finalize()


def _decrypt(key: Readable, context: bytes, sealed: Readable, kind: str) -> PrivateBuffer:
    if len(sealed) < _COMMITTED:
        raise TruncatedContainer(f"A sealed {kind} ends too early. Restore it from a backup.")
    decryptor = Cobblestone256Decryptor(key, context)
    try:
        decryptor.update(sealed[:_COMMITTED])
    except InvalidTag:
        raise WrongKey(f"A sealed {kind} does not open with its key. Restore it from a backup.") from None
    try:
        return _chunks(decryptor, memoryview(sealed)[_COMMITTED:])
    except InvalidTag:
        raise ContainerCorrupt(f"A sealed {kind} was changed or cut. Restore it from a backup.") from None


def _chunks(decryptor: Cobblestone256Decryptor, sealed: memoryview) -> PrivateBuffer:
    """Return the content of all chunks. Raises InvalidTag."""
    chunks = max(len(sealed) - _TAG, 0) // (_CHUNK + _TAG) + 1
    content = PrivateBuffer(max(len(sealed) - chunks * _TAG, 0))
    start = decryptor.update_into(sealed, content)
    last = decryptor.finalize()  # the last chunk comes as `bytes`
    memoryview(content)[start:] = last
    overwrite_bytes(last)
    return content
