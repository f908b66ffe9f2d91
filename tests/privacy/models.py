"""A tiny real anchor, a block that already changes something, and records of random tokens."""

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedmem.anchor.tokenizer import PAD
from fedmem.memory.block import make_source
from fedmem.memory.sites import spec_for
from fedmem.privacy.gradients import PrivateSequences

LAYERS, WIDTH, D_MODEL, VOCAB, LENGTH = 2, 4, 16, 40, 12


def anchor(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCAB,
                hidden_size=D_MODEL,
                intermediate_size=24,
                num_hidden_layers=LAYERS,
                num_attention_heads=2,
                max_position_embeddings=32,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=1,
            )
        )


def spec(width=WIDTH, kind="ffn"):
    return spec_for(anchor(), kind, 1, (width,))


def warm_block(seed=1, of=None):
    return 0.3 * torch.randn((of or spec()).fetch_size, generator=torch.Generator().manual_seed(seed))


def sequences(per_record, seed=2, shared=False, dtype=torch.float32):
    """`per_record[i]` sequences for record i, of random lengths, right-padded."""
    random = np.random.default_rng(seed)
    record_N = np.repeat(np.arange(len(per_record)), per_record)
    tokens_NT = torch.full((len(record_N), LENGTH), PAD)
    for row_T in tokens_NT:
        length = random.integers(2, LENGTH + 1)
        row_T[:length] = torch.from_numpy(random.integers(1, VOCAB, length))
    generator = torch.Generator().manual_seed(seed)
    fetched_NX = 0.2 * torch.randn(len(record_N), spec(3).fetch_size, generator=generator)
    fetch = (lambda numbers: make_source(spec(3), fetched_NX[torch.from_numpy(numbers)].to(dtype))) if shared else None
    return PrivateSequences(tokens_NT, record_N, len(per_record), fetch)
