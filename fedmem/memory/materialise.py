"""A fetch built into the model: the same family with a wider FFN, for any runtime that loads it [docs/method.md, §2].

Invariants
- Logits equal those of the anchor with the fetch in use, to float rounding.
- The anchor is left as it was; the result shares no storage with it.
- Private blocks must not be materialised to a path outside the vault (docs/design.md, §5): the result is theirs in
  the clear.

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
    """A plain model of the same family with the fetch `[fetch_size]` as additional inner rows of every MLP.

    Layers of smaller width are filled up with zeros, since a configuration knows one FFN width.
    Raises UsageError for a kind of memory that no plain model of the family can hold.
    """
    if spec.kind != "ffn":
        raise UsageError(f"Only FFN memory can be materialised, not {spec.kind!r}; answer with the memory attached.")
    widths = [sum(level) for level in zip(*spec.widths, strict=True)]
    config = deepcopy(model.config)
    setattr(config, _WIDTH_NAMES.get(config.model_type, "intermediate_size"), spec.shape.ffn + max(widths))
    with torch.device("meta"):
        plain = type(model)(config)
    plain = plain.to(model.dtype).to_empty(device=model.device)
    wider = _wider(model, spec, torch.split(fetched_X, spec.layer_sizes()), widths)
    for name, target in plain.state_dict().items():
        target.copy_(wider.get(name, model.state_dict()[name]))
    _copy_buffers(model, plain)
    plain.tie_weights()
    return plain.train(model.training)


def _copy_buffers(model: nn.Module, plain: nn.Module) -> None:
    """Buffers that no state dict holds, such as rotary frequencies."""
    found = dict(model.named_buffers())
    for name, buffer in plain.named_buffers():
        buffer.copy_(found[name])


def _wider(model: nn.Module, spec: MemorySpec, layers: Any, widths: list[int]) -> dict[str, Tensor]:
    """The changed tensors of the state dict by name: each MLP's maps with the rows of its layer."""
    names = {id(module): name for name, module in model.named_modules()}
    found = {}
    for sites, values, width in zip(sites_of(model), layers, widths, strict=True):
        rows = values.view(len(spec.segments), width, spec.shape.d_model)
        for segment, rows_RD in zip(spec.segments, rows, strict=True):
            module, prefix = sites[segment].module, names[id(sites[segment].module)]
            full_RD = torch.cat([rows_RD, rows_RD.new_zeros(max(widths) - width, spec.shape.d_model)])
            weight, bias = _joined(module, full_RD, inner=segment != "down")
            found[f"{prefix}.weight"] = weight
            if bias is not None:
                found[f"{prefix}.bias"] = bias
    return found


def _joined(module: Any, rows_RD: Tensor, inner: bool) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a map with these rows: more outputs where it is an `inner` one, else more inputs."""
    conv = isinstance(module, nn.Linear) is False  # GPT-2's Conv1D keeps [in, out]
    rows = rows_RD.to(module.weight)
    outward = rows if inner else rows.T
    weight = torch.cat([module.weight, outward.T if conv else outward], dim=int(inner == conv))
    bias = module.bias
    if bias is not None and inner:
        bias = torch.cat([bias, bias.new_zeros(len(rows))])
    return weight, bias
