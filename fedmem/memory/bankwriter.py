"""Write a bank of any size with little memory.

Invariants
- A failure or a crash leaves the earlier bank complete. New files have other names, and the manifest is replaced last.
  The next `write_bank` removes the files that a crash left behind.
- Blocks are written as they arrive. At most one piece of about `PIECE_BYTES` is in memory as bf16.
- Equal blocks give equal files with equal names.

    write_bank(folder, spec, [level_1_NX, level_2_NX], generic_X)
    write_bank(folder, spec, (blocks_of(level) for level in (1, 2)), generic_X)  # each yields [n, X], with any n
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

from fedmem.memory.bankfile import BYTES_PER_VALUE, write_blocks
from fedmem.memory.manifest import TEMPORARY, BankManifest, Shard, generic_file, level_file, sweep
from fedmem.memory.spec import MemorySpec
from fedmem.storage.files import Files, storage_errors

SHARD_BYTES = 2**30
PIECE_BYTES = 2**25


def write_bank(
    folder: Path,
    spec: MemorySpec,
    levels: Iterable[Tensor | Iterable[Tensor]],
    generic_X: Tensor,
    anchor: str | None = None,
) -> None:
    """Write a bank as bf16 into `folder`, and replace the bank that is there.

    Args:
        folder: is made if it does not exist.
        spec: the shape of the bank.
        levels: for each level all its blocks, `[blocks, block_size]`, or pieces of them in order, `[n, block_size]`.
        generic_X: the generic block, `[fetch_size]`.
        anchor: digest of the anchor that the bank belongs to.

    Raises:
        StorageError: the disk cannot be written.
        ValueError: number or size of the blocks is not that of the spec.
    """
    with storage_errors(f"write the bank in {folder.name}"):
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
    return tuple(_level(folder, spec, level, blocks) for level, blocks in numbered)


def _level(folder: Path, spec: MemorySpec, level: int, blocks: Tensor | Iterable[Tensor]) -> tuple[Shard, ...]:
    size, total = spec.block_size(level), spec.blocks(level)
    per_file = max(1, SHARD_BYTES // max(1, size * BYTES_PER_VALUE))
    counts = [min(per_file, total - at) for at in range(0, total, per_file)]
    parts = _cut([blocks] if isinstance(blocks, Tensor) else blocks, per_file, size)
    shards = []
    for number, count in enumerate(counts, start=1):
        sha256 = write_blocks(folder / TEMPORARY, count, size, parts)
        Files().rename(folder / TEMPORARY, folder / level_file(level, number, len(counts), sha256))
        shards.append(Shard(count, sha256))
    if next(parts, None) is not None:
        raise ValueError(f"level {level} was given more than its {total} blocks")
    return tuple(shards)


def _generic(folder: Path, spec: MemorySpec, generic_X: Tensor) -> str:
    sha256 = write_blocks(folder / TEMPORARY, 1, spec.fetch_size, iter([generic_X[None]]))
    Files().rename(folder / TEMPORARY, folder / generic_file(sha256))
    return sha256


def _cut(blocks: Iterable[Tensor], per_file: int, size: int) -> Iterator[Tensor]:
    """Yield the blocks in pieces of bounded size, per_file for one file of `per_file` blocks."""
    most_blocks, at = max(1, PIECE_BYTES // max(1, size * BYTES_PER_VALUE)), 0
    for blocks_NX in blocks:
        while len(blocks_NX):
            count = min(len(blocks_NX), most_blocks, per_file - at % per_file)
            yield blocks_NX[:count]
            at, blocks_NX = at + count, blocks_NX[count:]
