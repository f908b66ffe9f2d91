"""A bank on disk: one safetensors file per level, a block contiguous, bf16 (DESIGN §5).

Invariants
- A fetch reads one block per level, with one `pread` each; the bank is never resident as a whole.
- Level l holds k ** l blocks; block i of a level starts at `offset + i * block_bytes`.
- The generic block (the control of [HM, §4]) lies beside the levels in the same format.

    write_bank(folder, spec, levels, generic)
    with Bank.open(folder, spec) as bank:
        fetched_X = bank.fetch((1, 5, 23))
"""

import json
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

import torch
from safetensors.torch import save_file
from torch import Tensor

from fedmem.errors import NothingMatched, StorageError, VersionMismatch
from fedmem.memory.spec import MemorySpec

BYTES_PER_VALUE = 2
GENERIC = "generic.safetensors"


def level_file(level: int) -> str:
    """File name of a level, counted from 1."""
    return f"level-{level}.safetensors"


def write_bank(folder: Path, spec: MemorySpec, levels_NX: Sequence[Tensor], generic_X: Tensor) -> None:
    """Write every level, `[blocks, block_size]` each, and the generic block `[fetch_size]`, as bf16."""
    folder.mkdir(parents=True, exist_ok=True)
    for level, blocks_NX in enumerate(levels_NX, start=1):
        save_file({"rows": blocks_NX.to(torch.bfloat16).contiguous()}, folder / level_file(level))
    save_file({"rows": generic_X[None].to(torch.bfloat16).contiguous()}, folder / GENERIC)


class _LevelFile:
    """One open level: reads a block by its number into a reused buffer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDONLY)
        (header_bytes,) = struct.unpack("<Q", os.pread(self._file, 8, 0))
        info = json.loads(os.pread(self._file, header_bytes, 8))["rows"]
        self.blocks, *shape = info["shape"]
        self.shape = tuple(shape)
        self.block_bytes = BYTES_PER_VALUE * int(torch.Size(shape).numel())
        self._offset = 8 + header_bytes + info["data_offsets"][0]
        self._buffer = bytearray(self.block_bytes)
        expected = self._offset + self.blocks * self.block_bytes
        if info["dtype"] != "BF16" or os.fstat(self._file).st_size != expected:
            raise StorageError(f"{path.name} is truncated or not a bf16 level; make the release again.")

    def read(self, block: int) -> Tensor:
        """Block `block` as float32, `block_X`."""
        if not 0 <= block < self.blocks:
            raise NothingMatched(f"{self.path.name} has {self.blocks} blocks, none with number {block}.")
        got = os.preadv(self._file, [self._buffer], self._offset + block * self.block_bytes)
        if got != self.block_bytes:
            raise StorageError(f"{self.path.name} ended in the middle of block {block}; make the release again.")
        return torch.frombuffer(self._buffer, dtype=torch.bfloat16).view(self.shape).float()

    def close(self) -> None:
        os.close(self._file)


class Bank:
    """An open bank; fetches blocks by path."""

    def __init__(self, spec: MemorySpec, levels: list[_LevelFile], generic: _LevelFile) -> None:
        self._spec, self._levels, self._generic = spec, levels, generic

    @classmethod
    def open(cls, folder: Path, spec: MemorySpec) -> "Bank":
        """Open the bank in `folder`. Raises VersionMismatch if its shapes are not those of `spec`."""
        levels = [_LevelFile(folder / level_file(level)) for level in range(1, spec.levels + 1)]
        bank = cls(spec, levels, _LevelFile(folder / GENERIC))
        for number, level in enumerate(levels, start=1):
            if (level.blocks, level.shape) != (spec.blocks(number), (spec.block_size(number),)):
                bank.close()
                raise VersionMismatch(
                    f"{level.path.name} does not fit the release it lies in; load the whole release again."
                )
        return bank

    def fetch(self, path: Sequence[int]) -> Tensor:
        """The blocks of a path, one per level, joined: `[fetch_size]`."""
        return self._spec.join([level.read(int(i))[None] for level, i in zip(self._levels, path, strict=True)])[0]

    def fetch_many(self, paths: Iterable[Sequence[int]]) -> Tensor:
        """`fetched_BX` for a batch of paths."""
        return torch.stack([self.fetch(path) for path in paths])

    def generic(self) -> Tensor:
        """The generic block, `[fetch_size]`."""
        return self._generic.read(0)

    def level(self, level: int) -> Tensor:
        """Every block of one level (counted from 1), `[blocks, block_size]`; what a device holds."""
        source = self._levels[level - 1]
        return torch.stack([source.read(i) for i in range(source.blocks)])

    def close(self) -> None:
        """Close the files."""
        for level in [*self._levels, self._generic]:
            level.close()

    def __enter__(self) -> "Bank":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
