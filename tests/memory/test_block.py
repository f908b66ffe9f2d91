"""New blocks are seeded and change nothing; a source takes the rows that it is given, without a copy."""

import pytest
import torch

from fedmem.memory.attach import attach
from fedmem.memory.block import make_shared_source, make_source, new_blocks, new_fetch
from tests.memory.models import KINDS, model_of, segments, some_fetch, some_tokens, spec_of
from tests.memory.test_rows import kinds


@pytest.mark.parametrize("kind", KINDS)
def test_new_blocks_differ_and_are_half_zero(kind):
    spec = spec_of(model_of("llama"), kind)
    blocks_NX = new_blocks(spec, 1, 3, torch.Generator().manual_seed(1))
    assert torch.equal(blocks_NX, new_blocks(spec, 1, 3, torch.Generator().manual_seed(1)))
    assert not torch.equal(blocks_NX[0], blocks_NX[1])
    for part in segments(spec_of(model_of("llama"), kind, widths=(4,)), blocks_NX[0], 1).items():
        zero = part[0].endswith(".b") or part[0] in ("down", "value")
        assert bool((part[1] == 0).all()) == zero
        assert zero or part[1].std() > 0.01


def test_a_fetch_for_all_is_one_fetch():
    spec = spec_of(model_of("llama"))
    with pytest.raises(ValueError, match="for all"):
        make_shared_source(spec, some_fetch(spec))


@kinds
def test_a_source_copies_no_row(kind):
    spec = spec_of(model_of("llama"), kind, widths=(4,))
    rows_BX = some_fetch(spec, 2).requires_grad_()
    model, ids = model_of("llama"), some_tokens(2)
    with attach(model).using(make_shared_source(spec, rows_BX[0])):
        model(ids).logits.square().sum().backward()
    assert rows_BX.grad[0].abs().sum() > 0 == rows_BX.grad[1].abs().sum()


def test_a_new_fetch_has_a_block_of_each_level():
    spec = spec_of(model_of("llama"), widths=(4, 2))
    fetched_X = new_fetch(spec, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    for level, block_1X in enumerate(spec.split(fetched_X[None]), start=1):
        assert torch.equal(block_1X, new_blocks(spec, level, 1, generator))


def test_a_fetch_of_another_size_is_refused():
    spec = spec_of(model_of("llama"))
    for fetched in (torch.zeros(spec.fetch_size), torch.zeros(1, spec.fetch_size - 1)):
        with pytest.raises(ValueError, match="a fetch must be"):
            make_source(spec, fetched)
