"""Anchors built from scratch as Llama-shaped `transformers` models (docs/design.md, §5).

Invariants
- Same preset, vocabulary and seed give the same bytes, whatever the state of torch's global generator.
- No biases, RoPE base 100,000 [docs/method.md, §1]. `160m`, `410m` and `1.4b` have the paper's shape, QK-norm included,
  as Qwen 3 models; the small ones are Llama models without QK-norm, which costs time and gains nothing at their size.

>>> config("tiny", vocab_size=4096).num_hidden_layers
4
"""

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from fedmem.errors import UsageError

ROPE_BASE = 100_000.0


@dataclass(frozen=True)
class Shape:
    """Layers, model width, FFN width, heads and their width; whether the output shares the embedding; QK-norm."""

    layers: int
    d_model: int
    ffn: int
    heads: int
    head_dim: int = 32
    tied: bool = True
    qk_norm: bool = False


PRESETS = {
    "pico": Shape(layers=2, d_model=32, ffn=96, heads=1),
    "nano": Shape(layers=2, d_model=64, ffn=192, heads=2),
    "tiny": Shape(layers=4, d_model=128, ffn=384, heads=4),
    "small": Shape(layers=8, d_model=192, ffn=512, heads=6),
    "160m": Shape(layers=35, d_model=512, ffn=2048, heads=12, qk_norm=True),
    "410m": Shape(layers=24, d_model=1024, ffn=2816, heads=16, head_dim=64, tied=False, qk_norm=True),
    "1.4b": Shape(layers=24, d_model=2048, ffn=5632, heads=16, head_dim=128, tied=False, qk_norm=True),
}


def config(preset: str | Shape, vocab_size: int, context: int = 1024) -> LlamaConfig | Qwen3Config:
    """The configuration of a preset or a shape; `context` in tokens. Raises UsageError for an unknown preset."""
    shape = preset if isinstance(preset, Shape) else PRESETS.get(preset)
    if shape is None:
        raise UsageError(f"Unknown anchor preset {preset!r}; choose one of {', '.join(PRESETS)}.")
    return (Qwen3Config if shape.qk_norm else LlamaConfig)(
        vocab_size=vocab_size,
        hidden_size=shape.d_model,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.head_dim,
        max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_BASE},
        tie_word_embeddings=shape.tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )


def new_anchor(preset: str | Shape, vocab_size: int, seed: int) -> PreTrainedModel:
    """A randomly initialised anchor; torch's global generator is left as it was."""
    chosen = config(preset, vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(chosen) if isinstance(chosen, Qwen3Config) else LlamaForCausalLM(chosen)
