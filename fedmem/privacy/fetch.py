"""Fetching inside the device boundary: the shared blocks of a path, and the subject's own block of a topic.

Invariants
- There is one way to fetch; after an erasure it gives what a vault gives that never held the block (I4).
- A private block is fetched for the release that it was trained on, and for no other.
- Rows read from the vault live in the caller's memory only.

    block = block_for(vault, "health", release.digest)
    sources = shared_and_private(release, paths_BP, private_rows(vault, [block] if block else []))
    with memory.using(*sources): ...
"""

from collections.abc import Iterable, Sequence

from safetensors.torch import load
from torch import Tensor

from fedmem.memory.attach import Source
from fedmem.memory.ffn import RowsSource
from fedmem.training.release import Release
from fedmem.vault.vault import BlockInfo, Vault


def block_for(vault: Vault, topic: str | None, release: str) -> BlockInfo | None:
    """The newest block of `topic` that was trained on `release`, or None."""
    found = [block for block in vault.blocks() if block.topic == topic and block.release == release]
    return max(found, key=lambda block: block.version, default=None)


def private_rows(vault: Vault, blocks: Iterable[BlockInfo]) -> list[Tensor]:
    """Rows of each block, `rows_L3RD`, float32."""
    return [load(vault.block_rows(block.id))["rows"].float() for block in blocks]


def shared_and_private(release: Release, paths_BP: Iterable[Sequence[int]], private: Iterable[Tensor]) -> list[Source]:
    """Memory sources for a batch: each item's shared blocks, then the private blocks for all."""
    return [RowsSource(release.bank.fetch_many(paths_BP)), *(RowsSource(rows_L3RD[None]) for rows_L3RD in private)]
