"""A level on disk is the level in memory, through evictions, commits, crashes and a full disk."""

import errno
import os

import pytest
import torch

from fedmem.errors import StorageError, VerificationFailed
from fedmem.training.lazy_adamw import AdamWSettings, LazyAdamW
from fedmem.training.working_set import DiskLevel

COUNT, SIZE = 9, 5
SETTINGS = AdamWSettings(lr=1e-2)
BLOCKS = torch.randn(COUNT, SIZE, generator=torch.Generator().manual_seed(0))
EVERY = torch.arange(COUNT)


def steps(level, first, last):
    """Seeded steps on a few blocks each."""
    for number in range(first, last):
        generator = torch.Generator().manual_seed(number)
        ids = torch.randperm(COUNT, generator=generator)[:3]
        level.step(ids, torch.randn(3, SIZE, generator=generator), SETTINGS, 1 / (1 + number))


def in_memory(count):
    level = LazyAdamW(BLOCKS.clone())
    steps(level, 0, count)
    return level.read(EVERY)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "level-1.state"


def created(path, capacity=2):
    return DiskLevel.create(path, [BLOCKS[:4], BLOCKS[4:]], COUNT, SIZE, capacity)


def commit(level, generation):
    level.flush()
    level.commit(generation)


@pytest.mark.parametrize("capacity", [1, 2, 100])
def test_it_equals_the_level_in_memory_whatever_it_holds(path, capacity):
    level = created(path, capacity)
    steps(level, 0, 20)
    assert len(level._records) <= capacity
    assert torch.equal(level.read(EVERY), in_memory(20))


def test_a_crash_between_commits_gives_the_last_one(path):
    level = created(path)
    steps(level, 0, 7)
    commit(level, 7)
    steps(level, 7, 15)
    level.close()  # nothing is written on closing: as a crash leaves it, evicted blocks already changed
    again = DiskLevel(path, COUNT, SIZE, generation=7, capacity=2)
    assert torch.equal(again.read(EVERY), in_memory(7))
    steps(again, 7, 20)
    assert torch.equal(again.read(EVERY), in_memory(20))


def test_a_crash_between_the_checkpoint_and_the_end_of_the_log_keeps_the_new_state(path):
    level = created(path)
    steps(level, 0, 7)
    commit(level, 7)
    steps(level, 7, 12)
    level.flush()  # the checkpoint of step 12 is durable, `committed` never ran
    level.close()
    assert torch.equal(DiskLevel(path, COUNT, SIZE, generation=12).read(EVERY), in_memory(12))


def test_a_crash_before_the_first_commit_gives_the_start(path):
    level = created(path, 1)
    steps(level, 0, 5)
    level.close()
    assert torch.equal(DiskLevel(path, COUNT, SIZE, generation=0).read(EVERY), BLOCKS)


def test_a_torn_log_entry_is_ignored(path):
    level = created(path, 1)
    steps(level, 0, 5)
    level.close()
    with path.with_suffix(".undo").open("ab") as log:
        log.write(b"\x01" * 11)
    assert torch.equal(DiskLevel(path, COUNT, SIZE, generation=0).read(EVERY), BLOCKS)


def test_a_full_disk_is_a_typed_error_and_the_committed_state_is_whole(path, monkeypatch):
    level = created(path, 1)
    steps(level, 0, 3)
    commit(level, 3)

    def full(*_args):
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StorageError, match="free some space"):
            steps(level, 3, 9)
    level.close()
    assert torch.equal(DiskLevel(path, COUNT, SIZE, generation=3).read(EVERY), in_memory(3))


def test_no_room_for_the_level_is_a_typed_error(path, monkeypatch):
    def full(*_args):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match="no room"):
        created(path)


def test_a_level_of_another_size_is_refused(path):
    created(path).close()
    with pytest.raises(VerificationFailed, match="another size"):
        DiskLevel(path, COUNT + 1, SIZE, generation=0)
