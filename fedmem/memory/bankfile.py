"""One file of a bank: safetensors, one tensor `blocks` of `[count, size]` in bf16, a block contiguous.

Invariants
- The header holds shape and type and nothing else; it fills whole pages, so that a block of whole pages starts on one.
- A block is read by one `preadv`, straight to the places in memory that its parts are for.
- A file that is not exactly what is expected is refused when it is opened.

    sha256 = write_blocks(path, count, size, iter(parts_NX))
    file = BlockFile(path, count, size)
    file.read(7, [memoryview(buffer)])
"""

import errno
import hashlib
import json
import os
import struct
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from fedmem.errors import StorageError, VersionMismatch

BYTES_PER_VALUE = 2
PAGE = 4096
MOST_PARTS = os.sysconf("SC_IOV_MAX")

_ADVICE = {
    errno.ENOSPC: "The disk is full: free some space and repeat the command.",
    errno.EDQUOT: "The disk quota is used up: free some space and repeat the command.",
    errno.ENOENT: "A file is missing: fetch or build the bank again.",
}


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn an `OSError` inside the block into a `StorageError` that says what to do."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "Check the disk and repeat the command.")
        raise StorageError(f"Could not {what}: {error.strerror or 'input/output error'}. {advice}") from error


def header(count: int, size: int) -> bytes:
    """The first bytes of a file of `count` blocks of `size` values."""
    end = count * size * BYTES_PER_VALUE
    named = {"blocks": {"dtype": "BF16", "shape": [count, size], "data_offsets": [0, end]}}
    text = json.dumps(named, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    return struct.pack("<Q", len(text)) + text


def write_blocks(path: Path, count: int, size: int, parts: Iterator[Tensor]) -> str:
    """Write the next `count` blocks of `parts`, `[n, size]` each, durably; SHA-256 of the file.

    Raises ValueError for parts of another size, or where no part ends with the last block.
    """
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for data in _contents(count, size, parts):
            digest.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _contents(count: int, size: int, parts: Iterator[Tensor]) -> Iterator[bytes | memoryview]:
    yield header(count, size)
    while count > 0:
        part_NX = next(parts, None)
        shape = (0, size) if part_NX is None else tuple(part_NX.shape)
        if part_NX is None or shape[1:] != (size,) or shape[0] > count:
            raise ValueError(f"expected {count} more blocks of {size} values, got {shape}")
        count -= len(part_NX)
        yield raw(part_NX.detach().to("cpu", torch.bfloat16).contiguous())


def raw(values: Tensor) -> memoryview:
    """The bytes of a contiguous bf16 tensor, without a copy."""
    return values.view(-1).view(torch.uint8).numpy().data


class BlockFile:
    """An open file of `count` blocks of `size` values.

    Raises StorageError for a missing or truncated file, VersionMismatch for one of another shape.
    """

    def __init__(self, path: Path, count: int, size: int) -> None:
        self.name, self._block_bytes = path.name, size * BYTES_PER_VALUE
        expected = header(count, size)
        self._start, whole = len(expected), len(expected) + count * self._block_bytes
        with disk_errors(f"open {path.name}"):
            self._file = os.open(path, os.O_RDONLY)
        # A release drops its bank without closing it; its files must not stay open for that.
        self._closing = weakref.finalize(self, os.close, self._file)
        with disk_errors(f"open {path.name}"):
            same, found = os.pread(self._file, len(expected), 0) == expected, os.fstat(self._file).st_size
        if not same or found != whole:
            if found < whole:
                raise StorageError(f"{path.name} is truncated: {found} bytes of {whole}; fetch or build it again.")
            raise VersionMismatch(f"{path.name} does not fit the bank it lies in; fetch or build the bank again.")

    def read(self, block: int, parts: Sequence[memoryview]) -> None:
        """Fill `parts`, one after the other, with the bytes of a block. Raises StorageError."""
        if not self._closing.alive:
            raise ValueError("the bank is closed")
        with disk_errors(f"read block {block} of {self.name}"):
            _read(self._file, [part for part in parts if len(part)], self._start + block * self._block_bytes)

    def close(self) -> None:
        """Close the file; twice is harmless."""
        self._closing()


def _read(file: int, parts: list[memoryview], offset: int) -> None:
    """As one `preadv`, or as few as its limits on parts and bytes allow."""
    while parts:
        got = os.preadv(file, parts[:MOST_PARTS], offset)
        if not got:
            raise OSError(errno.EIO, "the file ended early")
        offset += got
        parts = _after(parts, got)


def _after(parts: list[memoryview], filled: int) -> list[memoryview]:
    """What is left of `parts` after their first `filled` bytes."""
    for number, part in enumerate(parts):
        if filled < len(part):
            return [part[filled:], *parts[number + 1 :]]
        filled -= len(part)
    return []
