"""Build a fetch into a plain model of the same family with a wider FFN [docs/method.md, §2].

Any runtime that loads models of the family can load the result.

Invariants
- Logits equal those of the anchor with the fetch in use, to float rounding.
- The anchor does not change; the result shares no storage with it.
- Private blocks must not be materialised to a path outside the vault (docs/design.md, §5): the result holds their
  parameters in the clear.

    plain = materialise(model, spec, bank.fetch(path).float())
    plain.save_pretrained(folder)
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from fedmem.errors import UsageError
from fedmem.memory.sites import sites_of
from fedmem.memory.spec import MemorySpec

_WIDTH_NAMES = {"gpt2": "n_inner"}


def materialise(model: Any, spec: MemorySpec, fetched_X: Tensor) -> Any:
    """Return a plain model of the same family with the fetch as additional inner rows of every MLP.

    A configuration has one FFN width, so layers of smaller width are filled up with zeros.

    Args:
        model: the anchor, a Hugging Face causal language model.
        spec: the shape of the fetch.
        fetched_X: `[fetch_size]`.

    Returns:
        A new model on the same device, with the same dtype and mode.

    Raises:
        UsageError: the kind of memory is not `ffn`, the architecture is not supported, or the model is compiled.
    """
    if hasattr(model, "_orig_mod"):  # the mark of torch.compile
        raise UsageError("A compiled model cannot be materialised. Give the plain model, and compile the result.")
    if spec.kind != "ffn":
        raise UsageError(f"Only FFN memory can be materialised, not {spec.kind!r}; answer with the memory attached.")
    widths = [sum(level) for level in zip(*spec.widths, strict=True)]
    config = deepcopy(model.config)
    setattr(config, _WIDTH_NAMES.get(config.model_type, "intermediate_size"), spec.shape.ffn + max(widths))
    # The weights decide, not the configuration: a head that was trained apart from its embedding stays apart.
    config.tie_word_embeddings = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    with torch.device("meta"):
        plain = type(model)(config)
    plain = plain.to(model.dtype).to_empty(device=model.device)
    wider = _wider_tensors(model, spec, torch.split(fetched_X, spec.layer_sizes()), widths)
    for name, target in plain.state_dict().items():
        target.copy_(wider.get(name, model.state_dict()[name]))
    _copy_buffers(model, plain)
    plain.tie_weights()
    return plain.train(model.training)


def _copy_buffers(model: nn.Module, plain: nn.Module) -> None:
    """Copy the buffers that no state dict holds, such as rotary frequencies."""
    buffers = dict(model.named_buffers())
    for name, buffer in plain.named_buffers():
        buffer.copy_(buffers[name])


def _wider_tensors(model: nn.Module, spec: MemorySpec, layers: Any, widths: list[int]) -> dict[str, Tensor]:
    """Return the changed tensors of the state dict by name: the linear maps of each MLP with the rows of its layer."""
    names = {id(module): name for name, module in model.named_modules()}
    tensors = {}
    for sites, values, width in zip(sites_of(model), layers, widths, strict=True):
        rows = values.view(len(spec.segments), width, spec.shape.d_model)
        for segment, rows_RD in zip(spec.segments, rows, strict=True):
            module, prefix = sites[segment].module, names[id(sites[segment].module)]
            full_RD = torch.cat([rows_RD, rows_RD.new_zeros(max(widths) - width, spec.shape.d_model)])
            weight, bias = _with_rows(module, full_RD, is_inner=segment != "down")
            tensors[f"{prefix}.weight"] = weight
            if bias is not None:
                tensors[f"{prefix}.bias"] = bias
    return tensors


def _with_rows(module: Any, rows_RD: Tensor, is_inner: bool) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of a linear map with additional rows: outputs if `is_inner` is true, else inputs."""
    is_conv = isinstance(module, nn.Linear) is False  # GPT-2's Conv1D keeps [in, out]
    rows = rows_RD.to(module.weight)
    outward = rows if is_inner else rows.T
    weight = torch.cat([module.weight, outward.T if is_conv else outward], dim=int(is_inner == is_conv))
    bias = module.bias
    if bias is not None and is_inner:
        bias = torch.cat([bias, bias.new_zeros(len(rows))])
    return weight, bias
