"""A level that is trained on disk: a working set in memory, written back, for large banks (docs/design.md, §5).

One file per level holds a record per block: values, two moments, step count, float32. Blocks are changed in place, so
before a block is written for the first time since the last commit its old record goes to an undo log.

Invariants
- After any crash `open` finds the level as it was at the last commit, to the byte.
- The file has its full size from the start: writing back needs no space. The undo log may need some, and where there is
  none the step fails with the committed state whole.
- At most `capacity` blocks are in memory beside those of one step.

    level = DiskLevel.create(path, blocks, count=4096, size=spec.block_size(3))
    level.step(ids_U, grads_UX, settings, scale)
    level.flush()  # then write the checkpoint, then
    level.committed(generation)

Shapes: U distinct blocks of a batch, X values of a block.
"""

import errno
import os
import struct
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedmem.errors import StorageError, VerificationFailed
from fedmem.training.lazy_adamw import AdamWSettings, update

_HEAD = struct.Struct("<8sQ")  # magic, generation
_UNDO = struct.Struct("<Q")
_MAGIC = b"fedmundo"
CAPACITY = 1024


class DiskLevel:
    """Blocks of one level with their optimiser's state, on disk; the last used `capacity` of them in memory."""

    def __init__(self, path: Path, count: int, size: int, generation: int, capacity: int = CAPACITY) -> None:
        self.count, self.size, self.capacity = count, size, capacity
        self._file = os.open(path, os.O_RDWR)
        self._undo = os.open(path.with_suffix(".undo"), os.O_RDWR | os.O_CREAT, 0o600)
        self._held: OrderedDict[int, Tensor] = OrderedDict()
        self._logged: set[int] = set()
        self._dirty: set[int] = set()
        if os.fstat(self._file).st_size != count * self.record:
            raise VerificationFailed(f"{path.name} has another size than its level; start the training again.")
        self._roll_back(generation)

    @classmethod
    def create(
        cls, path: Path, blocks: Iterable[Tensor], count: int, size: int, capacity: int = CAPACITY
    ) -> "DiskLevel":
        """A level of `count` blocks with these values, in their order, one or more at a time; generation 0.

        Raises StorageError where there is no room for it.
        """
        path.with_suffix(".undo").unlink(missing_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        record, at = 4 * (3 * size + 1), 0
        try:
            os.posix_fallocate(file, 0, count * record)
            for blocks_NX in blocks:
                for block_X in blocks_NX:
                    os.pwrite(file, block_X.numpy().tobytes(), at * record)
                    at += 1
            os.fsync(file)
        except OSError as error:
            raise StorageError("There is no room for the bank's training state; free some space.") from error
        finally:
            os.close(file)
        return cls(path, count, size, 0, capacity)

    @property
    def record(self) -> int:
        """Bytes of a block with its state."""
        return 4 * (3 * self.size + 1)

    def read(self, ids_U: Tensor) -> Tensor:
        """Copies of these blocks, `[U, X]`."""
        found_UX = torch.stack([self._hold(block)[: self.size] for block in ids_U.tolist()])
        self._evict()
        return found_UX

    def step(self, ids_U: Tensor, grads_UX: Tensor, settings: AdamWSettings, scale: float = 1.0) -> None:
        """Apply gradients to distinct blocks; `scale` multiplies the learning rate (schedule)."""
        records = [self._hold(block) for block in ids_U.tolist()]
        self._log(ids_U.tolist())
        parts = [torch.split(record, [self.size] * 3 + [1]) for record in records]
        blocks, first, second = ([part[number] for part in parts] for number in range(3))
        update(blocks, first, second, [part[3][0] for part in parts], list(grads_UX), settings, scale)
        self._dirty.update(ids_U.tolist())
        self._evict()

    def flush(self) -> None:
        """Write everything back, durably; once the caller's checkpoint is durable too, call `committed`."""
        for block in sorted(self._dirty):
            self._write(block)
        os.fsync(self._file)

    def committed(self, generation: int) -> None:
        """The caller's checkpoint of `generation` is durable: what went before cannot come back."""
        os.ftruncate(self._undo, 0)
        os.pwrite(self._undo, _HEAD.pack(_MAGIC, generation), 0)
        os.fsync(self._undo)
        self._logged.clear()

    def close(self) -> None:
        """Close the files; what was not committed is rolled back when the level is opened again."""
        os.close(self._file)
        os.close(self._undo)

    def _hold(self, block: int) -> Tensor:
        if block not in self._held:
            buffer = np.empty(3 * self.size + 1, dtype=np.float32)
            os.preadv(self._file, [buffer.data.cast("B")], block * self.record)
            self._held[block] = torch.from_numpy(buffer)
        self._held.move_to_end(block)
        return self._held[block]

    def _evict(self) -> None:
        while len(self._held) > self.capacity:
            oldest = next(iter(self._held))
            self._write(oldest)
            del self._held[oldest]

    def _write(self, block: int) -> None:
        if block in self._dirty:
            _write_whole(self._file, self._held[block].numpy().tobytes(), block * self.record)
            self._dirty.discard(block)

    def _log(self, blocks: list[int]) -> None:
        """Old records of blocks that change for the first time since the last commit, durable before the change."""
        new = [block for block in blocks if block not in self._logged]
        entries = [_UNDO.pack(block) + os.pread(self._file, self.record, block * self.record) for block in new]
        if entries:
            _write_whole(self._undo, b"".join(entries), os.fstat(self._undo).st_size)
            os.fsync(self._undo)
            self._logged.update(new)

    def _roll_back(self, generation: int) -> None:
        """Put back the records of an undo log that belongs to `generation`; an older log is of no use any more."""
        head = os.pread(self._undo, _HEAD.size, 0)
        if len(head) == _HEAD.size and _HEAD.unpack(head) == (_MAGIC, generation):
            entry, stop = _UNDO.size + self.record, os.fstat(self._undo).st_size
            # A torn last entry was never followed by a change.
            for at in range(_HEAD.size, stop - entry + 1, entry):
                data = os.pread(self._undo, entry, at)
                _write_whole(self._file, data[_UNDO.size :], _UNDO.unpack(data[: _UNDO.size])[0] * self.record)
            os.fsync(self._file)
        self.committed(generation)


def _write_whole(file: int, data: bytes, at: int) -> None:
    try:
        if os.pwrite(file, data, at) != len(data):
            raise OSError(errno.ENOSPC, "short write")
    except OSError as error:
        raise StorageError(
            "The disk is full: free some space and start again; training goes on at the last checkpoint."
        ) from error
