"""Fetching inside the device boundary: the shared blocks of a path, and the subject's own block of a topic.

Invariants
- There is one way to fetch; after an erasure it gives what a vault gives that never held the block (I4).
- A private block is fetched for the release that it was trained on, and for no other.
- Rows read from the vault live in the caller's memory only.

    block = block_for(vault, "health", release.digest)
    sources = shared_and_private(release, paths_BP, private_sources(vault, release, [block] if block else []))
    with memory.using(*sources): ...
"""

from collections.abc import Iterable, Sequence

from safetensors.torch import load

from fedmem.memory.block import source, source_for_all
from fedmem.memory.kinds import ActiveMemory
from fedmem.memory.spec import MemorySpec
from fedmem.training.release import Release
from fedmem.vault.vault import BlockInfo, Vault


def block_for(vault: Vault, topic: str | None, release: str) -> BlockInfo | None:
    """The newest block of `topic` that was trained on `release`, or None."""
    found = [block for block in vault.blocks() if block.topic == topic and block.release == release]
    return max(found, key=lambda block: block.version, default=None)


def private_sources(vault: Vault, release: Release, blocks: Iterable[BlockInfo]) -> list[ActiveMemory]:
    """Each private block as a memory source for every item of a batch."""
    found = []
    for block in blocks:
        spec = MemorySpec.single(release.spec.shape, block.layers, block.width)
        found.append(source_for_all(spec, load(vault.block_rows(block.id))["rows"].float()))
    return found


def shared_and_private(
    release: Release, paths_BP: Iterable[Sequence[int]], private: Iterable[ActiveMemory]
) -> list[ActiveMemory]:
    """Memory sources for a batch: each item's shared blocks, then the private blocks for all."""
    return [source(release.spec, release.bank.fetch_many(paths_BP)), *private]
