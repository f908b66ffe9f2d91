"""The bank on disk: a fetch is the block that was written, damage is a typed error."""

from dataclasses import replace

import pytest
import torch

from fedmem.errors import NothingMatched, StorageError, VersionMismatch
from fedmem.memory.bank import Bank, level_file, write_bank
from fedmem.memory.spec import LayerShape, MemorySpec

SHAPE = LayerShape(d_model=8, ffn=16, heads=2, kv_heads=2, head_dim=4, gated=True, activation="silu")
SPEC = MemorySpec("ffn", SHAPE, branching=3, widths=((4, 4), (2, 1)))


@pytest.fixture
def written(tmp_path):
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(SPEC.blocks(n), SPEC.block_size(n), generator=generator) for n in (1, 2)]
    generic = torch.randn(SPEC.fetch_size, generator=generator)
    write_bank(tmp_path, SPEC, levels, generic)
    return tmp_path, levels, generic


def bf16(rows):
    return rows.to(torch.bfloat16).float()


def test_a_fetch_joins_one_block_of_each_level(written):
    folder, levels, generic = written
    with Bank.open(folder, SPEC) as bank:
        assert torch.equal(bank.fetch((2, 7)), SPEC.join([bf16(levels[0][2:3]), bf16(levels[1][7:8])])[0])
        assert torch.equal(bank.generic(), bf16(generic))
        assert torch.equal(bank.level(2), bf16(levels[1]))


def test_fetched_rows_stay_when_the_buffer_is_used_again(written):
    folder, levels, _ = written
    with Bank.open(folder, SPEC) as bank:
        fetched_BX = bank.fetch_many([(0, 1), (2, 7), (0, 1)])
    assert torch.equal(fetched_BX[0], fetched_BX[2])
    assert torch.equal(SPEC.split(fetched_BX)[0][1], bf16(levels[0][2]))


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
        Bank.open(written[0], replace(SPEC, widths=((2, 2), (2, 2))))


def test_spec_round_trips():
    assert MemorySpec.from_dict(SPEC.to_dict()) == SPEC
