"""Build new anchors as Llama-shaped `transformers` models with random weights (docs/design.md, §5).

Invariants
- Same preset, vocabulary and seed give the same bytes, whatever the state of torch's global generator.
- No biases, RoPE base 100,000 [docs/method.md, §1]. `160m`, `410m` and `1.4b` have the paper's shape with QK-norm, and
  are Qwen 3 models. The small presets are Llama models without QK-norm: it costs time and gains nothing at their size.

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
    """The shape of an anchor: layers, widths of model and FFN, heads and their width.

    `tied` is true if the output layer shares the embedding's weights, `qk_norm` if queries and keys are normalised.
    """

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
    """Return the configuration of an anchor.

    Args:
        preset: a key of PRESETS, or a shape.
        vocab_size: entries of the tokenizer's vocabulary.
        context: the longest sequence, in tokens.

    Raises:
        UsageError: there is no preset of this name.
    """
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
    """Return an anchor with random weights. The state of torch's global generator does not change.

    Args:
        preset: a key of PRESETS, or a shape.
        vocab_size: entries of the tokenizer's vocabulary.
        seed: decides the weights.

    Raises:
        UsageError: there is no preset of this name.
    """
    model_config = config(preset, vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        is_qwen = isinstance(model_config, Qwen3Config)
        return Qwen3ForCausalLM(model_config) if is_qwen else LlamaForCausalLM(model_config)
