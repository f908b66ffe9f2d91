"""The last fetches, kept as they were joined: the least recently used one makes room for the next.

A block that one of them holds is copied from there and not read again, which is how upper levels stay in memory:
neighbours in the tree share them. A block that none holds goes from disk straight to its place.

Invariants
- The fetches held never pass `most` bytes, or two fetches where these are larger.
- What `used` gave last is not written to before `used` is called again, whatever is loaded meanwhile.
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
    """One fetch: its values, where the parts of each level lie in it, and which block of each level it holds."""

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
    """Fetches of a bank; `read(level, block, parts)` fills the parts of a block, levels counted from 0."""

    def __init__(self, spec: MemorySpec, read: Read, most: int) -> None:
        self._spec, self._read = spec, read
        self._limit = max(2, most // max(1, spec.fetch_size * BYTES_PER_VALUE))
        self._slots: list[Slot] = []  # least recently used first, what is loaded and not yet used before all
        self._where: dict[tuple[int, int], Slot] = {}

    def load(self, path: Sequence[int]) -> Slot:
        """The blocks of a path, in the slot that was not used for longest."""
        if len(self._slots) < self._limit:
            self._slots.insert(0, Slot(self._spec))
        slot = self._slots[0]
        for level, block in enumerate(path):
            if slot.blocks[level] != block:
                self._fill(slot, level, block)
        return slot

    def _fill(self, slot: Slot, level: int, block: int) -> None:
        old, slot.blocks[level] = slot.blocks[level], None
        if old is not None and self._where.get((level, old)) is slot:
            del self._where[level, old]
        if holder := self._where.get((level, block)):
            for target, found in zip(slot.parts[level], holder.parts[level], strict=True):
                target[:] = found
        else:
            self._read(level, block, slot.parts[level])
        slot.blocks[level] = block
        self._where[level, block] = slot

    def used(self, slot: Slot) -> Tensor:
        """Mark a loaded slot as the one in use; its fetch."""
        self._slots.remove(slot)
        self._slots.append(slot)
        return slot.fetched_X
