"""Tiny random models of every supported family, and blocks that change something."""

import torch
import transformers as tf

from fedmem.memory.attach import attach
from fedmem.memory.block import make_source
from fedmem.memory.sites import sites_of, spec_for

SMALL = {
    "vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
GROUPED = SMALL | {"num_key_value_heads": 2}
GPT2 = {
    "vocab_size": 120,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
FAMILIES = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**GROUPED)),
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**GROUPED, sliding_window=None)),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**GROUPED)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**GROUPED, head_dim=16)),
    "gemma3": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**GROUPED, head_dim=16, query_pre_attn_scalar=16)),
    "olmo2": lambda: tf.Olmo2ForCausalLM(tf.Olmo2Config(**GROUPED)),
    "gpt_neox": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**SMALL)),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0)),
}
KINDS = ("ffn", "lora_ffn", "lora_qk", "lora_vo", "kv")


def model_of(family: str):
    """A random model of a family, on a seed of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model = FAMILIES[family]().eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" not in name and "ln_" not in name:  # sharper than the initial weights, so that mistakes show
            parameter.mul_(4)
    return model


def spec_of(model, kind="ffn", widths=(4, 2)):
    return spec_for(model, kind, 3, widths)


def some_fetch(spec, batch=1, seed=0, scale=0.1):
    return scale * torch.randn(batch, spec.fetch_size, generator=torch.Generator().manual_seed(seed))


def some_tokens(batch=3, length=9):
    return torch.randint(2, 120, (batch, length), generator=torch.Generator().manual_seed(0))


def segments(spec, fetched_X, layer):
    """The segments of one layer of a single-level fetch, each `[R, size]`."""
    width, found, at = spec.widths[0][layer], {}, sum(spec.layer_sizes()[:layer])
    for name, size in spec.segments.items():
        found[name] = fetched_X[at : at + width * size].view(width, size)
        at += width * size
    return found


@torch.no_grad()
def effect(model, spec, fetched_BX, site, inputs, layer=1):
    """What memory adds at a site of a layer when its module is called alone."""
    place, memory = sites_of(model)[layer][site], attach(model)
    take = place.part or (lambda out: out)
    bare = take(place.module(inputs)).flatten(2)
    with memory.using(make_source(spec, fetched_BX)):
        out = take(place.module(inputs)).flatten(2) - bare
    memory.detach()
    return out[0]
