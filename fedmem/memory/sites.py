"""Find the sites of each decoder layer of a Hugging Face causal language model, and the geometry of its layers.

A site is a place where memory changes a layer: `mlp` (the whole MLP), `gate`, `up`, `down` (its linear maps), `q`,
`k`, `v`, `o` (those of attention), and `heads` (the input of `o`). A site has a module. Where one linear map computes
several sites (GPT-2, GPT-NeoX), a site also has the part of the module's output.

Invariants
- Only modules are looked up; no parameter is read or changed.
- A model of another architecture is refused with a UsageError.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fedmem.errors import UsageError
from fedmem.memory.spec import LayerShape, MemorySpec

SUPPORTED = "Llama, Mistral, Qwen 2, Qwen 3, Gemma 3, OLMo 2, GPT-NeoX, GPT-2"


@dataclass(frozen=True)
class Site:
    """A place in a layer: the output of `module`, its `part`, or the module's input if `before` is true.

    `part` returns the view of the output that belongs to the site; None stands for the whole output.
    """

    module: nn.Module
    part: Callable[[Tensor], Tensor] | None = None
    before: bool = False


def _llama(layer: Any, _shape: LayerShape) -> dict[str, Site]:
    mlp, attention = layer.mlp, layer.self_attn
    linears = {"gate": mlp.gate_proj, "up": mlp.up_proj, "down": mlp.down_proj} | {
        name: getattr(attention, f"{name}_proj") for name in "qkvo"
    }
    sites = {name: Site(module) for name, module in linears.items()}
    return sites | {"mlp": Site(mlp), "heads": Site(attention.o_proj, before=True)}


def _neox(layer: Any, shape: LayerShape) -> dict[str, Site]:
    def third(number: int) -> Callable[[Tensor], Tensor]:
        # One linear map computes query, key and value of each head; the site is that third of every head.
        return lambda out: out.view(*out.shape[:-1], shape.heads, 3, shape.head_dim)[..., number, :]

    mlp, attention = layer.mlp, layer.attention
    fused = {name: Site(attention.query_key_value, third(number)) for number, name in enumerate("qkv")}
    plain = {"mlp": Site(mlp), "up": Site(mlp.dense_h_to_4h), "down": Site(mlp.dense_4h_to_h)}
    return fused | plain | {"o": Site(attention.dense), "heads": Site(attention.dense, before=True)}


def _gpt2(layer: Any, shape: LayerShape) -> dict[str, Site]:
    def third(number: int) -> Callable[[Tensor], Tensor]:
        return lambda out: out[..., number * shape.d_model : (number + 1) * shape.d_model]

    mlp, attention = layer.mlp, layer.attn
    fused = {name: Site(attention.c_attn, third(number)) for number, name in enumerate("qkv")}
    plain = {"mlp": Site(mlp), "up": Site(mlp.c_fc), "down": Site(mlp.c_proj)}
    return fused | plain | {"o": Site(attention.c_proj), "heads": Site(attention.c_proj, before=True)}


_LLAMA_SHAPED = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "olmo2")


def _layers(model: Any) -> tuple[Any, Callable[[Any, LayerShape], dict[str, Site]]]:
    kind = model.config.model_type
    if kind in _LLAMA_SHAPED:
        return model.model.layers, _llama
    if kind == "gpt_neox":
        return model.gpt_neox.layers, _neox
    if kind == "gpt2":
        return model.transformer.h, _gpt2
    raise UsageError(f"Memory cannot be attached to a model of type {kind!r}; use one of {SUPPORTED}.")


def shape_of(model: Any) -> LayerShape:
    """Return the geometry of the model's layers.

    Args:
        model: a Hugging Face causal language model.

    Raises:
        UsageError: the architecture is not supported.
    """
    _layers(model)
    c = model.config
    heads, gated = c.num_attention_heads, c.model_type in _LLAMA_SHAPED
    names = ("hidden_activation", "hidden_act", "activation_function")
    return LayerShape(
        d_model=c.hidden_size,
        ffn=getattr(c, "intermediate_size", None) or getattr(c, "n_inner", None) or 4 * c.hidden_size,
        heads=heads,
        kv_heads=getattr(c, "num_key_value_heads", None) or heads,
        head_dim=getattr(c, "head_dim", None) or c.hidden_size // heads,
        gated=gated,
        activation=next(value for name in names if (value := getattr(c, name, None))),
    )


def sites_of(model: Any) -> list[dict[str, Site]]:
    """Return the sites of each layer by name.

    Args:
        model: a Hugging Face causal language model.

    Raises:
        UsageError: the architecture is not supported.
    """
    layers, find_sites = _layers(model)
    shape = shape_of(model)
    return [find_sites(layer, shape) for layer in layers]


def spec_for(model: Any, kind: str, branching: int, widths: Sequence[int | Sequence[int]]) -> MemorySpec:
    """Return the spec of a bank for this model.

    Args:
        model: a Hugging Face causal language model.
        kind: the kind of memory, as `fedmem.memory.kinds.kind_named` takes it.
        branching: children of a node of the tree.
        widths: for each level one width for all layers, or one for each layer.

    Raises:
        UsageError: the architecture is not supported, or a level has another number of widths than layers.
    """
    layers = len(_layers(model)[0])
    layer_widths = tuple((width,) * layers if isinstance(width, int) else tuple(width) for width in widths)
    if any(len(level) != layers for level in layer_widths):
        raise UsageError(f"A level needs one width, or one for each of the model's {layers} layers.")
    return MemorySpec(kind, shape_of(model), branching, layer_widths)
