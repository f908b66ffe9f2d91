"""The fetch benchmark: its paths share nothing, its checks can fail, its figures come out of a bank on disk."""

import itertools
import os

import numpy as np
import pytest
import torch

from benchmarks import fetch
from fedmem.memory.bank import Bank
from fedmem.memory.spec import MemorySpec

SPEC = MemorySpec("ffn", fetch.SHAPE, branching=4, widths=((8, 8), (4, 2), (2, 0), (0, 0)))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank")
    fetch.build(folder, SPEC)
    return folder


@pytest.mark.parametrize("branching", [fetch.BRANCHING, fetch.QUICK_BRANCHING])
def test_paths_are_distinct_in_the_tree_and_share_no_block_with_the_fetches_kept(branching):
    spec = MemorySpec("ffn", fetch.SHAPE, branching, tuple((width,) * fetch.LAYERS for width in fetch.WIDTHS))
    paths = fetch.distinct_paths(spec)
    assert len(paths) == len({path[2] for path in paths}) == 128
    assert all(deeper // branching == upper for path in paths for upper, deeper in itertools.pairwise(path))
    kept = max(2, fetch.CACHE_BYTES // (spec.fetch_size * fetch.BYTES_PER_VALUE))
    for number, path in enumerate(paths):
        earlier = {(level, b) for other in paths[max(0, number - kept) : number] for level, b in enumerate(other)}
        assert not earlier & set(enumerate(path))


def test_the_paper_s_shape_has_the_paper_s_size():
    spec = MemorySpec("ffn", fetch.SHAPE, fetch.BRANCHING, tuple((width,) * fetch.LAYERS for width in fetch.WIDTHS))
    assert round(spec.fetch_size / 1e6, 2) == 18.06
    assert round(spec.bank_size / 1e9, 2) == 4.62


def test_every_bit_of_a_bank_is_drawn_and_the_seed_fixes_it():
    blocks = [block.clone() for block in fetch.random_blocks(SPEC, 1)]
    assert len(blocks) == SPEC.blocks(1)
    assert torch.equal(torch.cat(blocks).view(torch.int16), torch.cat(_copies(SPEC)).view(torch.int16))
    ones = np.unpackbits(torch.cat(blocks).view(torch.uint8).numpy()).mean()
    assert abs(ones - 0.5) < 0.01
    assert not torch.equal(blocks[0].view(torch.int16), blocks[1].view(torch.int16))


def _copies(spec):
    return [block.clone() for block in fetch.random_blocks(spec, 1)]


def test_a_fetch_with_one_wrong_bit_is_found(built):
    files, path = fetch.Files(built, SPEC), fetch.distinct_paths(SPEC)[5]
    with Bank.open(built, SPEC) as bank:
        fetched, blocks = bank.fetch(path), files.read(path).copy()
    assert fetch.same(SPEC, fetched, blocks)
    for at in (0, len(blocks) // 2, -1):
        wrong = blocks.copy()
        wrong[at] ^= 1
        assert not fetch.same(SPEC, fetched, wrong)
    files.close()


def test_pages_in_memory_are_counted(built):
    files, path = fetch.Files(built, SPEC), fetch.distinct_paths(SPEC)[7]
    files.read(path)
    held, wanted = files.pages(path)
    assert held == wanted >= SPEC.fetch_size * fetch.BYTES_PER_VALUE // os.sysconf("SC_PAGESIZE")
    files.close()


def test_figures_and_checks(built, monkeypatch):
    monkeypatch.setattr(fetch, "PATHS", 12)
    data = fetch.measured(built, SPEC)
    assert data["checks"]["fetch_is_what_lies_on_disk"]
    assert data["checks"]["every_page_in_memory_when_warm"]
    assert data["peak_rss_mb"] > 0
    for name, value in data["ratio"].items():
        low, high = data["interval"][f"ratio.{name}"]
        assert 0 < low <= value <= high
