"""Writing a bank of any size within little memory.

Invariants
- A failure or a crash, at any moment, leaves the bank that was there whole: new files lie beside the old ones under
  other names until the manifest is replaced. What a crash left behind goes at the next writing.
- Blocks go to disk as they come; at most one piece of about `PIECE_BYTES` is held as bf16.
- Equal blocks give equal files with equal names.

    write_bank(folder, spec, [level_1_NX, level_2_NX], generic_X)
    write_bank(folder, spec, (blocks_of(level) for level in (1, 2)), generic_X)  # each yields [n, X], n as it likes
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

from fedmem.memory.bankfile import BYTES_PER_VALUE, disk_errors, write_blocks
from fedmem.memory.manifest import TEMPORARY, BankManifest, Shard, generic_file, level_file, sweep
from fedmem.memory.spec import MemorySpec

SHARD_BYTES = 2**30
PIECE_BYTES = 2**25


def write_bank(
    folder: Path,
    spec: MemorySpec,
    levels: Iterable[Tensor | Iterable[Tensor]],
    generic_X: Tensor,
    anchor: str | None = None,
) -> None:
    """Write a bank as bf16 in place of the one in `folder`.

    Args:
        levels: for each level all its blocks, `[blocks, block_size]`, or pieces of them in order, `[n, block_size]`.
        generic_X: the generic block, `[fetch_size]`.
        anchor: digest of the anchor that the bank belongs to.

    Raises StorageError where the disk refuses, ValueError for blocks that are not those of the spec.
    """
    with disk_errors(f"write the bank in {folder.name}"):
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        try:
            manifest = BankManifest(spec, _levels(folder, spec, levels), _generic(folder, spec, generic_X), anchor)
            manifest.write(folder)
        finally:
            sweep(folder)


def _levels(
    folder: Path, spec: MemorySpec, levels: Iterable[Tensor | Iterable[Tensor]]
) -> tuple[tuple[Shard, ...], ...]:
    numbered = zip(range(1, spec.levels + 1), levels, strict=True)
    return tuple(_level(folder, spec, level, given) for level, given in numbered)


def _level(folder: Path, spec: MemorySpec, level: int, given: Tensor | Iterable[Tensor]) -> tuple[Shard, ...]:
    size, blocks = spec.block_size(level), spec.blocks(level)
    each = max(1, SHARD_BYTES // max(1, size * BYTES_PER_VALUE))
    counts = [min(each, blocks - at) for at in range(0, blocks, each)]
    parts = _cut([given] if isinstance(given, Tensor) else given, each, size)
    shards = []
    for number, count in enumerate(counts, start=1):
        sha256 = write_blocks(folder / TEMPORARY, count, size, parts)
        os.replace(folder / TEMPORARY, folder / level_file(level, number, len(counts), sha256))
        shards.append(Shard(count, sha256))
    if next(parts, None) is not None:
        raise ValueError(f"level {level} was given more than its {blocks} blocks")
    return tuple(shards)


def _generic(folder: Path, spec: MemorySpec, generic_X: Tensor) -> str:
    sha256 = write_blocks(folder / TEMPORARY, 1, spec.fetch_size, iter([generic_X[None]]))
    os.replace(folder / TEMPORARY, folder / generic_file(sha256))
    return sha256


def _cut(given: Iterable[Tensor], each: int, size: int) -> Iterator[Tensor]:
    """The blocks in pieces of bounded size, none of which straddles two files of `each` blocks."""
    most, at = max(1, PIECE_BYTES // max(1, size * BYTES_PER_VALUE)), 0
    for blocks_NX in given:
        while len(blocks_NX):
            count = min(len(blocks_NX), most, each - at % each)
            yield blocks_NX[:count]
            at, blocks_NX = at + count, blocks_NX[count:]
