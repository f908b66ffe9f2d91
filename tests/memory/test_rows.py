"""Rows of a fetch and items of a batch: as many of one as of the other, or one for all by a call that says so."""

import pytest
import torch

from fedmem.errors import UsageError
from fedmem.memory.attach import attach
from fedmem.memory.block import make_shared_source, make_source
from tests.memory.models import KINDS, model_of, some_fetch, some_tokens, spec_of

kinds = pytest.mark.parametrize("kind", KINDS)
HOW = {"max_new_tokens": 3, "min_new_tokens": 3, "pad_token_id": 0}
USES = {
    "3 items for 2 rows": lambda model, ids: model(torch.cat([ids, ids[:1]])),
    "1 item for 2 rows": lambda model, ids: model(ids[:1]),
    "beams": lambda model, ids: generate(model, ids, num_beams=3, do_sample=False),
    "return sequences": lambda model, ids: generate(model, ids, num_return_sequences=3, do_sample=True),
}


def generate(model, ids, **how):
    return model.generate(ids, attention_mask=torch.ones_like(ids), **HOW, **how)


@kinds
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("use", USES)
@torch.no_grad()
def test_another_number_of_items_than_rows_is_refused(kind, family, use):
    model, ids = model_of(family), some_tokens(2, 6)
    memory, spec, bare = attach(model), spec_of(model, kind), model(ids).logits
    rows_BX = some_fetch(spec, 2)
    with pytest.raises(UsageError, match="rows for 2 items"), memory.using(make_source(spec, rows_BX)):
        USES[use](model, ids)
    assert torch.equal(model(ids).logits, bare)


@kinds
@torch.no_grad()
def test_one_row_is_not_for_all_unless_it_is_said(kind):
    model, ids = model_of("llama"), some_tokens()
    memory, spec = attach(model), spec_of(model, kind)
    with pytest.raises(UsageError, match="make_shared_source"), memory.using(make_source(spec, some_fetch(spec))):
        model(ids)
    # Expanded as for DP-SGD, it is still a row for each.
    expanded = make_source(spec, some_fetch(spec).expand(2, -1))
    with pytest.raises(UsageError, match="rows for 2 items"), memory.using(expanded):
        model(ids)


@kinds
@torch.no_grad()
def test_one_row_for_all_equals_the_row_repeated(kind):
    model, ids = model_of("llama"), some_tokens()
    memory, spec = attach(model), spec_of(model, kind)
    row_X = some_fetch(spec)[0]
    for count in (1, 3):
        with memory.using(make_shared_source(spec, row_X)):
            together = model(ids[:count]).logits
        with memory.using(make_source(spec, row_X.repeat(count, 1))):
            repeated = model(ids[:count]).logits
        torch.testing.assert_close(together, repeated, atol=2e-5, rtol=0)


@kinds
@torch.no_grad()
def test_beams_with_repeated_rows_are_those_of_each_item_alone(kind):
    model, ids = model_of("llama"), some_tokens(2, 6)
    memory, spec = attach(model), spec_of(model, kind)
    rows_BX, beams = some_fetch(spec, 2, scale=0.3), {"num_beams": 3, "do_sample": False}
    with memory.using(make_source(spec, rows_BX.repeat_interleave(3, dim=0))):
        together = generate(model, ids, **beams)
    for number in range(2):
        with memory.using(make_shared_source(spec, rows_BX[number])):
            assert torch.equal(generate(model, ids[number : number + 1], **beams)[0], together[number])
