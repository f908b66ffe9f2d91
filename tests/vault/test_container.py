"""The container: opens whole, or is refused with the right class; a second reader agrees."""

import secrets
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from fedmem.errors import UsageError, VerificationFailed, VersionMismatch
from fedmem.vault.crypto import container
from fedmem.vault.crypto.container import ContainerCorrupt, TruncatedContainer, WrongKey
from tests.heap import words_left

KEY = bytes(range(32))
HEADER = {"id": "b1", "release": "r1"}


def second_reader(key: bytes, body: bytes, context: bytes) -> bytes:
    """Cobblestone-256 read from C2SP's text alone: HKDF-Expand with SHA-512, AES-256-GCM in 16 KiB chunks."""
    salt, commitment, chunks = body[:24], body[24:56], body[56:]
    info = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00" + salt + context
    derived = HKDFExpand(SHA512(), 32 + 12 + 32, info).derive(key)
    assert derived[44:] == commitment
    step, plain = 16384 + 16, b""
    for number, start in enumerate(range(0, len(chunks), step)):
        nonce = (int.from_bytes(derived[32:44], "big") ^ number).to_bytes(12, "big")
        plain += AESGCM(derived[:32]).decrypt(nonce, chunks[start : start + step], b"")
    assert len(chunks) % step >= 16
    return plain


@pytest.mark.parametrize("size", [0, 1, 63, 64, 16383, 16384, 16385, 50000])
def test_round_trip_and_second_reader(size: int) -> None:
    payload = bytes(i % 251 for i in range(size))
    sealed = container.seal(KEY, HEADER, payload, identity="block/b1")
    assert container.unseal(KEY, sealed, identity="block/b1") == (HEADER, payload)
    start = container.read_header(sealed)[1]
    assert second_reader(KEY, sealed[start:], sealed[:start] + b"block/b1") == payload


@given(st.binary(max_size=200), st.data())
def test_every_truncation_is_typed(payload: bytes, data: st.DataObject) -> None:
    sealed = container.seal(KEY, HEADER, payload, identity="i")
    cut = data.draw(st.integers(0, len(sealed) - 1))
    with pytest.raises(TruncatedContainer):
        container.unseal(KEY, sealed[:cut], identity="i")


@given(st.data())
def test_every_flipped_bit_is_refused(data: st.DataObject) -> None:
    sealed = bytearray(container.seal(KEY, HEADER, b"payload", identity="i"))
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((VerificationFailed, VersionMismatch)):
        container.unseal(KEY, bytes(sealed), identity="i")


def test_reordered_chunks_are_refused() -> None:
    sealed = container.seal(KEY, HEADER, b"a" * 16384 + b"b" * 16384, identity="i")
    start = container.read_header(sealed)[1] + 56
    one, two = sealed[start : start + 16400], sealed[start + 16400 : start + 32800]
    with pytest.raises(ContainerCorrupt):
        container.unseal(KEY, sealed[:start] + two + one + sealed[start + 32800 :], identity="i")


def test_chunk_dropped_with_a_mended_length_is_refused() -> None:
    sealed = container.seal(KEY, HEADER, b"a" * 20000, identity="i")
    start = container.read_header(sealed)[1]
    body = sealed[start : start + 56 + 16400]
    prefix = container.PREFIX.pack(container.MAGIC, 1, start - container.PREFIX.size, len(body))
    with pytest.raises(VerificationFailed):
        container.unseal(KEY, prefix + sealed[container.PREFIX.size : start] + body, identity="i")


def test_header_and_identity_are_bound() -> None:
    one = container.seal(KEY, {"id": "b1"}, b"payload", identity="block/b1")
    two = container.seal(KEY, {"id": "b2"}, b"payload", identity="block/b2")
    start = container.read_header(one)[1]
    with pytest.raises(WrongKey):
        container.unseal(KEY, two[:start] + one[start:], identity="block/b1")
    with pytest.raises(WrongKey):
        container.unseal(KEY, one, identity="block/b2")
    with pytest.raises(WrongKey):
        container.unseal(bytes(32), one, identity="block/b1")


@pytest.mark.parametrize(("header", "body"), [(2**32 - 1, 100), (10, 2**63), (4097, 100)])
def test_absurd_sizes_are_refused_before_allocation(header: int, body: int) -> None:
    claim = struct.pack(">4sHIQ", container.MAGIC, 1, header, body) + b"{}"
    tracemalloc.start()
    try:
        with pytest.raises(ContainerCorrupt):
            container.unseal(KEY, claim, identity="i")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_trailing_bytes_are_refused() -> None:
    with pytest.raises(ContainerCorrupt):
        container.unseal(KEY, container.seal(KEY, HEADER, b"", identity="i") + b"x", identity="i")


def test_another_format_version() -> None:
    sealed = container.seal(KEY, HEADER, b"", identity="i")
    with pytest.raises(VersionMismatch):
        container.unseal(KEY, sealed[:4] + b"\x00\x02" + sealed[6:], identity="i")


def test_header_has_a_cap() -> None:
    with pytest.raises(UsageError):
        container.seal(KEY, {"release": "r" * 5000}, b"", identity="i")


def test_cells_are_bound_to_their_identity() -> None:
    cell = container.seal_cell(KEY, b"text", identity="record/v/1")
    assert container.open_cell(KEY, cell, identity="record/v/1") == b"text"
    with pytest.raises(WrongKey):
        container.open_cell(KEY, cell, identity="record/v/2")
    with pytest.raises(TruncatedContainer):
        container.open_cell(KEY, cell[:40], identity="record/v/1")


def test_same_payload_twice_shares_no_bytes() -> None:
    one, two = (container.seal_cell(KEY, b"text" * 9, identity="i") for _ in range(2))
    assert one[:24] != two[:24]
    assert one[56:] != two[56:]


DECRYPT = """
import os, sys
from fedmem.vault.crypto import container
key, size = bytes(range(32)), int(sys.argv[1])
with open(sys.argv[2], "rb") as file:
    sealed = file.read()
content = container.unseal(key, sealed, identity="block/b")[1]
assert len(content) == size
print("opened", flush=True)
sys.stdin.readline()
del content
print("dropped", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("size", [100, 16384, 100_000])
def test_nothing_of_the_content_stays_in_memory_once_it_is_dropped(tmp_path: Path, size: int) -> None:
    """The last chunk comes from the library as `bytes`, so all sizes around a chunk matter."""
    payload = secrets.token_bytes(size)
    (tmp_path / "sealed").write_bytes(container.seal(bytes(range(32)), {}, payload, identity="block/b"))
    command = [sys.executable, "-c", DECRYPT, str(size), str(tmp_path / "sealed")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        left = []
        for _ in range(2):
            process.stdout.readline()
            try:
                left.append(words_left(process.pid, {"content": payload})["content"])
            except PermissionError:
                pytest.skip("the memory of another process cannot be read here")
            process.stdin.write("\n")
            process.stdin.flush()
    assert left[0] >= size // 8 - 1
    assert left[1] <= 2  # the cipher leaves its last block, 16 bytes, on the stack
