"""The engines of gradients against plain autograd on one record at a time."""

import numpy as np
import pytest
import torch

from fedmem.anchor.tokenizer import PAD
from fedmem.privacy.gradients import PrivateSequences
from tests.privacy.engines import PER_RECORD, engine_sum, gap, norm, one_record_at_a_time
from tests.privacy.models import WIDTH, anchor, sequences, spec, warm_block


@pytest.mark.parametrize("engine", ["fused", "opacus"])
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5, 15, 64])
@pytest.mark.parametrize("clip", [0.01, 1e3])
def test_engine_equals_the_one_record_loop(micro_batch, clip, engine):
    model, block = anchor().double(), warm_block().double()
    data = sequences(PER_RECORD, shared=True, dtype=torch.float64)
    chosen = np.array([True, True, False, True, True, True])
    fast = engine_sum(model, block, data, chosen, clip, micro_batch, engine=engine)
    slow = one_record_at_a_time(model, block, data, chosen, clip)
    assert gap(fast, slow) < 1e-5 * norm(slow)


@pytest.mark.parametrize("width", [WIDTH, 64])
@pytest.mark.parametrize("kind", ["ffn", "lora_ffn", "lora_qk", "lora_vo", "kv"])
def test_the_fused_engine_does_every_kind(kind, width):
    of = spec(width, kind)
    model, block = anchor().double(), warm_block(of=of).double()
    data, chosen = sequences(PER_RECORD, shared=True, dtype=torch.float64), np.ones(len(PER_RECORD), dtype=bool)
    slow = one_record_at_a_time(model, block, data, chosen, 0.01, of)
    for micro_batch in (1, 4, 64):
        fast = engine_sum(model, block, data, chosen, 0.01, micro_batch, of=of)
        assert gap(fast, slow) < 1e-5 * norm(slow)


def test_clipping_sequences_instead_of_records_would_be_seen():
    model, block, data = anchor().double(), warm_block().double(), sequences(PER_RECORD)
    chosen = np.ones(len(PER_RECORD), dtype=bool)
    per_sequence = PrivateSequences(data.tokens_NT, np.arange(len(data.record_N)), len(data.record_N))
    wrong = engine_sum(model, block, per_sequence, np.ones(len(data.record_N), dtype=bool), 0.01)
    assert gap(wrong, one_record_at_a_time(model, block, data, chosen, 0.01)) > 1e-3


def test_all_padding_and_one_token_records_count_as_zero():
    data = sequences([1, 1])
    data.tokens_NT[0] = PAD
    data.tokens_NT[1, 1:] = PAD
    clipped = engine_sum(anchor(), warm_block(), data, np.array([True, True]), 0.1)
    assert norm(clipped) == 0.0


@pytest.mark.parametrize("engine", ["fused", "opacus"])
def test_under_bf16_autocast_the_sum_is_near(engine):
    chosen = np.ones(len(PER_RECORD), dtype=bool)
    data = sequences(PER_RECORD)
    rough = engine_sum(anchor(), warm_block(), data, chosen, 0.1, bf16=True, engine=engine)
    exact = engine_sum(anchor(), warm_block(), data, chosen, 0.1)
    assert 0 < gap(rough, exact) < 0.05 * norm(exact)


def test_sequences_must_be_sorted_by_record_and_complete():
    tokens_NT = torch.ones(2, 4, dtype=torch.int64)
    for record_N, records in ((np.array([1, 0]), 2), (np.array([0, 2]), 2), (np.array([0]), 1)):
        with pytest.raises(ValueError, match="sorted by record"):
            PrivateSequences(tokens_NT, record_N, records)
