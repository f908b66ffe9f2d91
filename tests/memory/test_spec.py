"""The shape of a bank: a fetch joins the blocks of its levels, and a spec survives JSON."""

import pytest
import torch

from fedmem.memory.spec import MemorySpec
from tests.memory.models import KINDS, model_of, spec_of
from tests.memory.test_bank import SPEC, SPECS


@pytest.mark.parametrize("widths", [((4, 4), (2, 2)), ((0, 3), (1, 5)), ((3, 0), (0, 0))])
@pytest.mark.parametrize("kind", KINDS)
def test_split_undoes_join_and_rows_of_all_levels_lie_together(kind, widths):
    spec = spec_of(model_of("llama"), kind, widths=widths)
    levels = [torch.arange(spec.block_size(n)).repeat(2, 1) + 10_000 * n for n in (1, 2)]
    joined = spec.join(levels)
    assert joined.shape == (2, spec.fetch_size)
    assert sum(spec.layer_sizes()) == spec.fetch_size
    for level, again in zip(levels, spec.split(joined), strict=True):
        assert torch.equal(level, again)
    first, size = next(iter(spec.segments.items()))
    one, two = (width[1] * size for width in widths)
    start = spec.layer_sizes()[0]
    got = joined[0, start : start + one + two]
    assert (got[:one] < 20_000).all(), first
    assert (got[one:] >= 20_000).all(), first


def test_a_spec_survives_json():
    spec = spec_of(model_of("gemma3"), "kv", widths=((1, 2), (0, 4)))
    assert type(spec).from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize("name", SPECS)
def test_sizes_agree(name):
    spec = SPECS[name]
    sizes = [spec.block_size(level) for level in range(1, spec.levels + 1)]
    assert spec.fetch_size == sum(sizes) == sum(spec.layer_sizes()) == sum(p.stop - p.start for p in spec.pieces)
    assert spec.bank_size == sum(size * spec.branching**level for level, size in enumerate(sizes, start=1))
    assert MemorySpec.from_dict(spec.to_dict()) == spec


def test_a_form_without_a_field_is_an_error():
    with pytest.raises(KeyError):
        MemorySpec.from_dict({name: value for name, value in SPEC.to_dict().items() if name != "widths"})
