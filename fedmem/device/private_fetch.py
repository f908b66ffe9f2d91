"""Fetch memory inside the boundary of a device: the shared blocks of a path, and the private block of a topic.

Invariants
- There is one way to fetch. After an erasure it gives the same result as in a vault that never had the block (I4).
- A private block is fetched only for the release that it was trained on.
- Rows from the vault are held in one buffer only. It is overwritten when the sources are dropped, and when the vault
  is closed or notices an erasure. So an answer counts only if the vault's generation is the same afterwards.

    block = block_for(vault, "health", release.digest)
    sources = shared_and_private(release, paths_BP, private_sources(vault, release, [block] if block else []))
    with memory.using(*sources): ...
"""

import json
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fedmem.memory.block import make_shared_source, make_source
from fedmem.memory.kinds import ActiveMemory
from fedmem.memory.spec import MemorySpec
from fedmem.storage.private_memory import PrivateBuffer
from fedmem.training.release import Release
from fedmem.vault.vault import BlockInfo, Vault


def block_for(vault: Vault, topic: str | None, release: str) -> BlockInfo | None:
    """Return the newest block of a topic on a release, or None.

    Args:
        vault: the open vault.
        topic: name of the topic; None has no block.
        release: digest of the release.
    """
    blocks = [block for block in vault.blocks() if block.topic == topic and block.release == release]
    return max(blocks, key=lambda block: block.version, default=None)


def private_sources(vault: Vault, release: Release, blocks: Iterable[BlockInfo]) -> list[ActiveMemory]:
    """Return one memory source for each private block; it applies to every item of a batch.

    Args:
        vault: the vault of the blocks.
        release: the release that the blocks were trained on.
        blocks: the blocks, in the order of the sources.

    Raises:
        FedmemError: any error of reading the vault.
    """
    sources = []
    for block in blocks:
        spec = MemorySpec.single(release.spec.shape, block.layers, block.width)
        sources.append(make_shared_source(spec, tensors_in(vault.block_rows(block.id))["rows"]))
    return sources


def overwrite_products(release: Release, blocks: Iterable[BlockInfo], tokens: int) -> None:
    """Overwrite the copies of rows that a pass over `tokens` tokens left in the work memory of this thread.

    The matrix library copies a matrix before it multiplies it with several tokens, and keeps that memory for its next
    product. So one product of zeros of the same shape follows.

    Args:
        release: the release of the blocks.
        blocks: the blocks whose rows were in use.
        tokens: number of tokens of the pass.
    """
    for width in sorted({block.width for block in blocks}):
        spec = MemorySpec.single(release.spec.shape, 1, width)
        blank, zeros_1TD = (
            make_shared_source(spec, torch.zeros(spec.fetch_size)),
            torch.zeros(1, tokens, spec.shape.d_model),
        )
        for site in sorted(blank.sites):
            blank.add(0, site, zeros_1TD, zeros_1TD)


def tensors_in(data: PrivateBuffer) -> dict[str, Tensor]:
    """Return the tensors of a safetensors buffer as views of it. `safetensors.torch.load` would copy them.

    Args:
        data: the buffer, as `safetensors.torch.save` wrote its content; every tensor is float32.

    Raises:
        ValueError: a tensor has another type.
    """
    (length,) = struct.unpack_from("<Q", data)
    start = struct.calcsize("<Q") + length
    header: dict[str, Any] = json.loads(bytes(memoryview(data)[start - length : start]))
    return {name: _tensor(data, start, facts) for name, facts in header.items() if name != "__metadata__"}


def _tensor(data: PrivateBuffer, start: int, facts: dict[str, Any]) -> Tensor:
    if facts["dtype"] != "F32":
        raise ValueError(f"private rows are float32, not {facts['dtype']}")
    first, last = facts["data_offsets"]
    if first == last:
        return torch.empty(facts["shape"])
    return torch.frombuffer(data, dtype=torch.float32, offset=start + first, count=(last - first) // 4).view(
        facts["shape"]
    )


def shared_and_private(
    release: Release, paths_BP: Iterable[Sequence[int]], private: Iterable[ActiveMemory]
) -> list[ActiveMemory]:
    """Return the memory sources of a batch: the shared blocks of each item, then the private sources for all.

    Args:
        paths_BP: path of each item, one block number for each level.
    """
    return [make_source(release.spec, release.bank.fetch_many(paths_BP)), *private]
