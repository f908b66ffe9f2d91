"""The cache of fetches: hits are not read again, memory is bounded, and a failed load leaves no wrong block."""

import os

import pytest
import torch

from fedmem.errors import StorageError
from fedmem.memory.bank import Bank
from fedmem.memory.cache import Cache
from tests.memory.test_bank import FETCH, SPEC, joined, reads, some_paths, written

__all__ = ["reads", "written"]


def test_blocks_of_recent_fetches_are_not_read_again(written, reads):
    with Bank.open(written[0], SPEC, cache_bytes=3 * FETCH) as bank:
        for path in [(0, 1), (0, 2), (1, 3), (0, 1)]:  # shares level 1, shares nothing, shares both
            bank.fetch(path)
        assert len(reads) == 2 + 1 + 2 + 0
        bank.fetch((2, 6)), bank.fetch((2, 7)), bank.fetch((2, 8)), reads.clear()
        bank.fetch((0, 1))
        assert len(reads) == 2


def test_no_more_memory_is_held_than_was_allowed(written):
    for allowed, slots in [(0, 2), (3 * FETCH, 3), (5 * FETCH + 1, 5)]:
        with Bank.open(written[0], SPEC, cache_bytes=allowed) as bank:
            places = {bank.fetch(path).data_ptr() for path in some_paths(SPEC, 30)}
        assert len(places) == slots


def test_a_read_that_fails_leaves_no_wrong_block_behind(written, monkeypatch):
    folder, levels, _ = written
    preadv, broken = os.preadv, []

    def torn(file, parts, offset):
        if broken:
            preadv(file, parts[:1], offset)
            raise OSError(5, "Input/output error")
        return preadv(file, parts, offset)

    monkeypatch.setattr(os, "preadv", torn)
    with Bank.open(folder, SPEC, cache_bytes=0) as bank:
        bank.fetch((0, 1)), bank.fetch((0, 2)), broken.append(True)
        with pytest.raises(StorageError, match="Input/output error"):
            bank.fetch((2, 7))
        broken.clear()
        for path in [(0, 1), (2, 7), (0, 2)]:
            assert torch.equal(bank.fetch(path).float(), joined(SPEC, levels, path))


def test_a_load_never_writes_to_the_fetch_that_is_in_use():
    def read(level, block, parts):
        for part in parts:
            part[:] = bytes([16 * level + block]) * len(part)

    cache = Cache(SPEC, read, most=0)  # two slots
    in_use_X = cache.used(cache.load((0, 1)))
    for path in [(1, 3), (2, 8), (1, 4), (0, 1)]:
        before_X, loaded = in_use_X.clone(), cache.load(path)
        assert loaded.fetched_X is not in_use_X
        assert torch.equal(in_use_X, before_X)
        in_use_X = cache.used(loaded)
