"""Put Opacus' hooks on a block that is written as linear maps: the engine `opacus`.

Invariants
- When the context ends, all hooks and the attributes that they set are removed.

Shapes: B batch, R rows, D model width, X values of the block, T tokens.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from opacus import GradSampleModule
from torch import Tensor, nn
from torch.nn import functional as F

from fedmem.errors import UsageError
from fedmem.memory.spec import MemorySpec


class LinearBlock(nn.Module):
    """A gated FFN block as three linear maps for each layer. It is a memory source.

    The values of `block_X` have the order of `MemorySpec.single(shape, layers, width)`.
    """

    sites = frozenset({"mlp"})
    items: int | None = None
    dtype: torch.dtype = torch.float32

    def __init__(self, spec: MemorySpec) -> None:
        super().__init__()
        self.spec, d_model, width = spec, spec.shape.d_model, spec.widths[0][0]
        sizes = ((d_model, width), (d_model, width), (width, d_model))
        self.maps = nn.ModuleList(nn.Linear(*size, bias=False) for _ in range(spec.layers) for size in sizes)

    @torch.no_grad()
    def load(self, block_X: Tensor) -> None:
        """Copy the values and the dtype of a block."""
        self.dtype = block_X.dtype
        self.to(block_X.dtype)
        for number, rows_RD in enumerate(block_X.view(len(self.maps), -1, self.spec.shape.d_model)):
            self._weight(number).copy_(rows_RD.T if number % 3 == 2 else rows_RD)

    def take(self) -> Tensor:
        """Return the gradient of each sequence, `[B, X]`, and clear the gradients."""
        parts = [_take_gradients(self._weight(number)) for number in range(len(self.maps))]
        return torch.cat([(p.mT if n % 3 == 2 else p).flatten(1) for n, p in enumerate(parts)], dim=1)

    def add(self, layer: int, site: str, hidden_BTD: Tensor, output_BTD: Tensor) -> Tensor:
        """Return the output of the MLP plus the output of the block."""
        gate, up, down = self.maps[3 * layer : 3 * layer + 3]
        added: Tensor = down(F.silu(gate(hidden_BTD)) * up(hidden_BTD))
        return output_BTD + added

    def _weight(self, number: int) -> nn.Parameter:
        weight = self.maps[number].weight
        assert isinstance(weight, nn.Parameter)
        return weight


def _take_gradients(parameter: nn.Parameter) -> Tensor:
    grads_B: Tensor = vars(parameter)["grad_sample"]
    vars(parameter)["grad_sample"] = None
    parameter.grad = None
    return grads_B.detach()


@contextmanager
def hooked(spec: MemorySpec) -> Iterator[LinearBlock]:
    """Give a block whose linear maps keep a gradient for each sequence.

    Raises UsageError if the block is not a gated FFN with SiLU.
    """
    if (spec.kind, spec.shape.gated, spec.shape.activation) != ("ffn", True, "silu"):
        raise UsageError("The engine opacus trains FFN memory of a SwiGLU anchor only; use the engine fused.")
    block = LinearBlock(spec)
    hooks = GradSampleModule(block, loss_reduction="sum", strict=True)
    with warnings.catch_warnings():
        # The input of the first layer needs no gradient; torch warns about that at each backward pass.
        warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
        try:
            yield block
        finally:
            hooks.remove_hooks()
