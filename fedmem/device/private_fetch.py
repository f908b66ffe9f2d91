"""Fetch memory inside the boundary of a device: the shared blocks of a path, and the private block of a topic.

Invariants
- There is one way to fetch. After an erasure it gives the same result as in a vault that never had the block (I4).
- A private block is fetched only for the release that it was trained on.
- Rows from the vault are held in the caller's memory only.

    block = block_for(vault, "health", release.digest)
    sources = shared_and_private(release, paths_BP, private_sources(vault, release, [block] if block else []))
    with memory.using(*sources): ...
"""

from collections.abc import Iterable, Sequence

from safetensors.torch import load

from fedmem.memory.block import make_shared_source, make_source
from fedmem.memory.kinds import ActiveMemory
from fedmem.memory.spec import MemorySpec
from fedmem.training.release import Release
from fedmem.vault.vault import BlockInfo, Vault


def block_for(vault: Vault, topic: str | None, release: str) -> BlockInfo | None:
    """Return the newest block of `topic` that was trained on the release of this digest, or None."""
    blocks = [block for block in vault.blocks() if block.topic == topic and block.release == release]
    return max(blocks, key=lambda block: block.version, default=None)


def private_sources(vault: Vault, release: Release, blocks: Iterable[BlockInfo]) -> list[ActiveMemory]:
    """Return one memory source for each private block; it applies to every item of a batch.

    Raises what reading the vault raises.
    """
    sources = []
    for block in blocks:
        spec = MemorySpec.single(release.spec.shape, block.layers, block.width)
        sources.append(make_shared_source(spec, load(vault.block_rows(block.id))["rows"].float()))
    return sources


def shared_and_private(
    release: Release, paths_BP: Iterable[Sequence[int]], private: Iterable[ActiveMemory]
) -> list[ActiveMemory]:
    """Return the memory sources of a batch: the shared blocks of each item, then the private sources for all.

    Args:
        paths_BP: path of each item, one block number for each level.
    """
    return [make_source(release.spec, release.bank.fetch_many(paths_BP)), *private]
