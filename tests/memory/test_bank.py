"""The bank on disk: a fetch is the block that was written, damage is a typed error."""

import pytest
import torch

from fedmem.errors import NothingMatched, StorageError, VersionMismatch
from fedmem.memory.bank import Bank, level_file, write_bank
from fedmem.memory.spec import MemorySpec

SPEC = MemorySpec(layers=2, d_model=8, branching=3, widths=(4, 2))


@pytest.fixture
def written(tmp_path):
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(SPEC.blocks(n), 2, 3, w, 8, generator=generator) for n, w in ((1, 4), (2, 2))]
    generic = torch.randn(2, 3, SPEC.width, 8, generator=generator)
    write_bank(tmp_path, levels, generic)
    return tmp_path, levels, generic


def bf16(rows):
    return rows.to(torch.bfloat16).float()


def test_a_fetch_joins_one_block_of_each_level(written):
    folder, levels, generic = written
    with Bank.open(folder, SPEC) as bank:
        rows_L3RD = bank.fetch((2, 7))
        assert torch.equal(rows_L3RD, torch.cat([bf16(levels[0][2]), bf16(levels[1][7])], dim=2))
        assert torch.equal(bank.generic(), bf16(generic))
        assert torch.equal(bank.level(2), bf16(levels[1]))


def test_fetched_rows_stay_when_the_buffer_is_used_again(written):
    folder, levels, _ = written
    with Bank.open(folder, SPEC) as bank:
        rows_BL3RD = bank.fetch_many([(0, 1), (2, 7), (0, 1)])
    assert torch.equal(rows_BL3RD[0], rows_BL3RD[2])
    assert torch.equal(rows_BL3RD[1, :, :, :4], bf16(levels[0][2]))


def test_a_path_outside_the_tree_is_refused(written):
    with Bank.open(written[0], SPEC) as bank, pytest.raises(NothingMatched, match="none with number 9"):
        bank.fetch((0, 9))


def test_a_truncated_level_is_refused(written):
    path = written[0] / level_file(2)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StorageError, match="truncated"):
        Bank.open(written[0], SPEC)


def test_a_bank_of_another_shape_is_refused(written):
    with pytest.raises(VersionMismatch):
        Bank.open(written[0], MemorySpec(layers=2, d_model=8, branching=3, widths=(2, 2)))


def test_spec_round_trips():
    assert MemorySpec.from_dict(SPEC.to_dict()) == SPEC
