"""Anchors built from scratch as Llama-shaped `transformers` models (DESIGN §5).

Invariants
- Same preset, vocabulary and seed give the same bytes, whatever the state of torch's global generator.
- Tied head, no biases, RoPE base 100,000 [HM, §4]; QK-norm is left out because Llama has none.

>>> config("tiny", vocab_size=4096).num_hidden_layers
4
"""

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedmem.errors import UsageError

ROPE_BASE = 100_000.0


@dataclass(frozen=True)
class Shape:
    """Layers, model width, FFN width and heads of a preset."""

    layers: int
    d_model: int
    ffn: int
    heads: int


PRESETS = {
    "nano": Shape(layers=2, d_model=64, ffn=192, heads=2),
    "tiny": Shape(layers=4, d_model=128, ffn=384, heads=4),
    "small": Shape(layers=8, d_model=192, ffn=512, heads=6),
}


def config(preset: str, vocab_size: int, context: int = 1024) -> LlamaConfig:
    """The configuration of a preset; `context` in tokens. Raises UsageError for an unknown preset."""
    if preset not in PRESETS:
        raise UsageError(f"Unknown anchor preset {preset!r}; choose one of {', '.join(PRESETS)}.")
    shape = PRESETS[preset]
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.d_model,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_BASE},
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )


def new_anchor(preset: str, vocab_size: int, seed: int) -> LlamaForCausalLM:
    """A randomly initialised anchor; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config(preset, vocab_size))
