"""Write and read one file of a bank: safetensors with one tensor `blocks` of `[count, size]` in bf16.

Invariants
- The header holds shape and type and nothing else. It fills whole pages, so a block of whole pages is page-aligned.
- A block is contiguous. One `preadv` reads it directly into the buffers of its parts.
- Opening a file refuses another header or another length.

    sha256 = write_blocks(path, count, size, iter(parts_NX))
    file = BlockFile(path, count, size)
    file.read(7, [memoryview(buffer)])
"""

import errno
import json
import os
import struct
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fedmem.errors import StorageError, VersionMismatch
from fedmem.storage.files import Files, storage_errors

BYTES_PER_VALUE = 2
PAGE = 4096
MOST_PARTS = os.sysconf("SC_IOV_MAX")


def header(count: int, size: int) -> bytes:
    """Return the safetensors header of a file of blocks, filled up to whole pages.

    Args:
        count: number of blocks.
        size: values of a block.
    """
    end = count * size * BYTES_PER_VALUE
    tensors = {"blocks": {"dtype": "BF16", "shape": [count, size], "data_offsets": [0, end]}}
    text = json.dumps(tensors, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    return struct.pack("<Q", len(text)) + text


def write_blocks(path: Path, count: int, size: int, parts: Iterator[Tensor]) -> str:
    """Write a file with the next `count` blocks of `parts`, and fsync it.

    Args:
        path: the file to write.
        count: number of blocks.
        size: values of a block.
        parts: the blocks in order, in tensors `[n, size]`; further tensors are left in the iterator.

    Returns:
        SHA-256 of the file, in hex.

    Raises:
        ValueError: a part has another size, or a part does not end with the last block.
        StorageError: the disk cannot be written.
    """
    return Files().write_pieces(path, _contents(count, size, parts))


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
    """Return the bytes of a contiguous bf16 tensor, without a copy.

    Args:
        values: contiguous, bf16, on the CPU.
    """
    return values.view(-1).view(torch.uint8).numpy().data


class BlockFile:
    """An open file of blocks.

    Args:
        path: the file.
        count: number of blocks that it must hold.
        size: values of a block.

    Raises:
        StorageError: the file is missing or truncated.
        VersionMismatch: the file has another shape.
    """

    def __init__(self, path: Path, count: int, size: int) -> None:
        self.name, self._block_bytes = path.name, size * BYTES_PER_VALUE
        expected_header = header(count, size)
        self._start, expected = len(expected_header), len(expected_header) + count * self._block_bytes
        with storage_errors(f"open {path.name}"):
            self._file = os.open(path, os.O_RDONLY)
        # A release drops its bank without closing it; its files must not stay open for that.
        self._closing = weakref.finalize(self, os.close, self._file)
        with storage_errors(f"open {path.name}"):
            has_header = os.pread(self._file, len(expected_header), 0) == expected_header
            actual = os.fstat(self._file).st_size
        if not has_header or actual != expected:
            if actual < expected:
                raise StorageError(f"{path.name} is truncated: {actual} bytes of {expected}; fetch or build it again.")
            raise VersionMismatch(f"{path.name} has another shape than its bank; fetch or build the bank again.")

    def read(self, block: int, parts: Sequence[memoryview]) -> None:
        """Read the bytes of a block into `parts`, one after the other.

        Args:
            block: number of the block, from 0 to `count` - 1.
            parts: writable buffers that together have the bytes of one block; empty ones are left out.

        Raises:
            StorageError: the disk cannot be read.
            ValueError: the file is closed.
        """
        if not self._closing.alive:
            raise ValueError("the bank is closed")
        with storage_errors(f"read block {block} of {self.name}"):
            _read(self._file, [part for part in parts if len(part)], self._start + block * self._block_bytes)

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        self._closing()


def _read(file: int, parts: list[memoryview], offset: int) -> None:
    """Read with one `preadv`, or with as few as its limits on parts and bytes allow."""
    while parts:
        count = os.preadv(file, parts[:MOST_PARTS], offset)
        if not count:
            raise OSError(errno.EIO, "the file ended early")
        offset += count
        parts = _rest_after(parts, count)


def _rest_after(parts: list[memoryview], filled: int) -> list[memoryview]:
    """Return the rest of `parts` after their first `filled` bytes."""
    for number, part in enumerate(parts):
        if filled < len(part):
            return [part[filled:], *parts[number + 1 :]]
        filled -= len(part)
    return []
