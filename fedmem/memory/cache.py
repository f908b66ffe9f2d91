"""Keep the most recent fetches of a bank in memory. A new fetch replaces the least recently used one.

A block that a cached fetch contains is copied from there and not read again. Neighbours in the tree share the blocks
of upper levels, so these stay in memory. Every other block is read from disk directly into the buffer of the fetch.

Invariants
- The cached fetches take at most `most` bytes, or two fetches if these are larger.
- The tensor that `used` returned last is not written to before the next call of `used`, even by `load`.
- A load that fails leaves no wrong block behind.

    cache = Cache(spec, read, most=128 * 2**20)
    fetched_X = cache.used(cache.load((1, 5, 23)))

Shapes: X values of a fetch.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedmem.memory.bankfile import BYTES_PER_VALUE, raw
from fedmem.memory.spec import MemorySpec

Read = Callable[[int, int, Sequence[memoryview]], None]


class Slot:
    """One cached fetch: its values, its parts by level, and the number of its block of each level.

    Args:
        spec: the shape of the bank.
    """

    def __init__(self, spec: MemorySpec) -> None:
        self.fetched_X = torch.zeros(spec.fetch_size, dtype=torch.bfloat16)
        self.parts: list[list[memoryview]] = [[] for _ in range(spec.levels)]
        self.blocks: list[int | None] = [None] * spec.levels
        whole, at = raw(self.fetched_X), 0
        for piece in spec.pieces:
            end = at + (piece.stop - piece.start) * BYTES_PER_VALUE
            self.parts[piece.level].append(whole[at:end])
            at = end


class Cache:
    """The most recent fetches of a bank.

    Args:
        spec: the shape of the bank.
        read: `read(level, block, parts)` reads a block into its parts; levels are counted from 0.
        most: the most bytes that cached fetches take.
    """

    def __init__(self, spec: MemorySpec, read: Read, most: int) -> None:
        self._spec, self._read = spec, read
        self._limit = max(2, most // max(1, spec.fetch_size * BYTES_PER_VALUE))
        self._slots: list[Slot] = []  # least recently used first; a loaded slot that is not yet in use is the first
        self._holders: dict[tuple[int, int], Slot] = {}

    def load(self, path: Sequence[int]) -> Slot:
        """Load the blocks of a path into the least recently used slot, and return it.

        Args:
            path: block numbers from level 1 to the leaf; they must be in the tree.
        """
        if len(self._slots) < self._limit:
            self._slots.insert(0, Slot(self._spec))
        slot = self._slots[0]
        for level, block in enumerate(path):
            if slot.blocks[level] != block:
                self._fill(slot, level, block)
        return slot

    def _fill(self, slot: Slot, level: int, block: int) -> None:
        replaced_block, slot.blocks[level] = slot.blocks[level], None
        if replaced_block is not None and self._holders.get((level, replaced_block)) is slot:
            del self._holders[level, replaced_block]
        if holder := self._holders.get((level, block)):
            for target, cached_part in zip(slot.parts[level], holder.parts[level], strict=True):
                target[:] = cached_part
        else:
            self._read(level, block, slot.parts[level])
        slot.blocks[level] = block
        self._holders[level, block] = slot

    def used(self, slot: Slot) -> Tensor:
        """Mark a loaded slot as the slot in use, and return its fetch.

        Args:
            slot: the slot that `load` returned last.

        Returns:
            `[fetch_size]` bf16, valid until the next call.
        """
        self._slots.remove(slot)
        self._slots.append(slot)
        return slot.fetched_X
