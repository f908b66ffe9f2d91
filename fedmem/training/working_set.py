"""Train a level of a large bank on disk, with a working set of blocks in memory (docs/design.md, §5).

A level has one file. It holds a record for each block: values, two moments and step count, float32. Records are changed
in place. Before the first change of a record since the last commit, the old record is written to an undo log.

Invariants
- After any crash, opening the level restores it as it was at the last commit, to the byte.
- The file has its full size from the start, so writing back needs no space. The undo log may need space; if there is
  none, the step fails and the committed state is complete.
- At most `capacity` blocks are in memory, beside those of one step.

    level = DiskLevel.create(path, blocks, count=4096, size=spec.block_size(3))
    level.step(ids_U, grads_UX, settings, scale)
    level.flush()  # then write the checkpoint, then
    level.commit(generation)

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
"""Default number of blocks in memory."""


class DiskLevel:
    """A level on disk: blocks with the state of their optimiser. The `capacity` blocks used last are in memory.

    Args:
        path: file of the level; the undo log is beside it.
        count: number of blocks.
        size: values of a block.
        generation: generation of the checkpoint to restore.
        capacity: number of blocks in memory.

    Raises:
        VerificationFailed: the file has another size.
        StorageError: the disk is full.
    """

    def __init__(self, path: Path, count: int, size: int, generation: int, capacity: int = CAPACITY) -> None:
        self.count, self.size, self.capacity = count, size, capacity
        self._file = os.open(path, os.O_RDWR)
        self._undo = os.open(path.with_suffix(".undo"), os.O_RDWR | os.O_CREAT, 0o600)
        self._records: OrderedDict[int, Tensor] = OrderedDict()
        self._logged_blocks: set[int] = set()
        self._dirty_blocks: set[int] = set()
        if os.fstat(self._file).st_size != count * self.record:
            raise VerificationFailed(f"{path.name} has another size than its level; start the training again.")
        self._roll_back(generation)

    @classmethod
    def create(
        cls, path: Path, blocks: Iterable[Tensor], count: int, size: int, capacity: int = CAPACITY
    ) -> "DiskLevel":
        """Create a level at generation 0.

        Args:
            path: file of the level; an existing one is replaced.
            blocks: values of the blocks in order, as tensors `[n, size]`, float32.
            count: number of blocks.
            size: values of a block.
            capacity: number of blocks in memory.

        Raises:
            StorageError: the disk has no room for the file.
        """
        path.with_suffix(".undo").unlink(missing_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        record, block = 4 * (3 * size + 1), 0
        try:
            os.posix_fallocate(file, 0, count * record)
            for blocks_NX in blocks:
                for block_X in blocks_NX:
                    os.pwrite(file, block_X.numpy().tobytes(), block * record)
                    block += 1
            os.fsync(file)
        except OSError as error:
            raise StorageError("There is no room for the bank's training state; free some space.") from error
        finally:
            os.close(file)
        return cls(path, count, size, 0, capacity)

    @property
    def record(self) -> int:
        """The bytes of a block with its state."""
        return 4 * (3 * self.size + 1)

    def read(self, ids_U: Tensor) -> Tensor:
        """Return copies of blocks.

        Args:
            ids_U: block ids, from 0 to `count` - 1; at least one.

        Returns:
            `[U, X]` float32.
        """
        blocks_UX = torch.stack([self._load_record(block)[: self.size] for block in ids_U.tolist()])
        self._evict()
        return blocks_UX

    def step(self, ids_U: Tensor, grads_UX: Tensor, settings: AdamWSettings, scale: float = 1.0) -> None:
        """Apply gradients to distinct blocks, as `Level.step`. Raises StorageError if the disk is full."""
        records = [self._load_record(block) for block in ids_U.tolist()]
        self._log_old_records(ids_U.tolist())
        parts = [torch.split(record, [self.size] * 3 + [1]) for record in records]
        blocks, first, second = ([part[number] for part in parts] for number in range(3))
        update(blocks, first, second, [part[3][0] for part in parts], list(grads_UX), settings, scale)
        self._dirty_blocks.update(ids_U.tolist())
        self._evict()

    def flush(self) -> None:
        """Write all changed blocks back, durably. Call `commit` when the caller's checkpoint is durable too."""
        for block in sorted(self._dirty_blocks):
            self._write_back(block)
        os.fsync(self._file)

    def commit(self, generation: int) -> None:
        """Make the flushed blocks those of `generation`. Call it when the checkpoint of `generation` is durable.

        Args:
            generation: number of the checkpoint, at least 0.
        """
        os.ftruncate(self._undo, 0)
        os.pwrite(self._undo, _HEAD.pack(_MAGIC, generation), 0)
        os.fsync(self._undo)
        self._logged_blocks.clear()

    def close(self) -> None:
        """Close the files. Changes without a commit are rolled back when the level is opened again."""
        os.close(self._file)
        os.close(self._undo)

    def _load_record(self, block: int) -> Tensor:
        if block not in self._records:
            buffer = np.empty(3 * self.size + 1, dtype=np.float32)
            os.preadv(self._file, [buffer.data.cast("B")], block * self.record)
            self._records[block] = torch.from_numpy(buffer)
        self._records.move_to_end(block)
        return self._records[block]

    def _evict(self) -> None:
        while len(self._records) > self.capacity:
            oldest = next(iter(self._records))
            self._write_back(oldest)
            del self._records[oldest]

    def _write_back(self, block: int) -> None:
        if block in self._dirty_blocks:
            _write_at(self._file, self._records[block].numpy().tobytes(), block * self.record)
            self._dirty_blocks.discard(block)

    def _log_old_records(self, blocks: list[int]) -> None:
        """Log the old record of each block that changes for the first time since the last commit, before the change."""
        new = [block for block in blocks if block not in self._logged_blocks]
        entries = [_UNDO.pack(block) + os.pread(self._file, self.record, block * self.record) for block in new]
        if entries:
            _write_at(self._undo, b"".join(entries), os.fstat(self._undo).st_size)
            os.fsync(self._undo)
            self._logged_blocks.update(new)

    def _roll_back(self, generation: int) -> None:
        """Restore the records of the undo log if it belongs to `generation`; an older log is dropped."""
        head = os.pread(self._undo, _HEAD.size, 0)
        if len(head) == _HEAD.size and _HEAD.unpack(head) == (_MAGIC, generation):
            entry, stop = _UNDO.size + self.record, os.fstat(self._undo).st_size
            # An incomplete last entry was never followed by a change of its block.
            for offset in range(_HEAD.size, stop - entry + 1, entry):
                data = os.pread(self._undo, entry, offset)
                _write_at(self._file, data[_UNDO.size :], _UNDO.unpack(data[: _UNDO.size])[0] * self.record)
            os.fsync(self._file)
        self.commit(generation)


def _write_at(file: int, data: bytes, offset: int) -> None:
    try:
        if os.pwrite(file, data, offset) != len(data):
            raise OSError(errno.ENOSPC, "short write")
    except OSError as error:
        raise StorageError(
            "The disk is full: free some space and start again; training goes on at the last checkpoint."
        ) from error
