"""Memory at the anchor's MLPs: sources add to each layer's output while they are in use.

Invariants
- The anchor's parameters, module names and state dict never change; `detach` leaves no trace.
- With no source in use the anchor's logits are bit-identical to those of the bare anchor.
- Sources add in the order in which they were given, so sums are reproducible to the bit.

    memory = attach(model)
    with memory.using(RowsSource(rows_BL3RD)):
        logits = model(tokens).logits
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Source = Callable[[int, Tensor], Tensor]
"""`(layer, hidden_BTD) -> addend_BTD`, added to the output of that layer's MLP."""


class Memory:
    """The handle that `attach` returns; holds the sources in use."""

    def __init__(self, mlps: list[nn.Module]) -> None:
        self._sources: tuple[Source, ...] = ()
        self._hooks = [mlp.register_forward_hook(self._hook(layer)) for layer, mlp in enumerate(mlps)]

    def _hook(self, layer: int) -> Callable[..., Tensor]:
        def add(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            for source in self._sources:
                output = output + source(layer, args[0])
            return output

        return add

    @contextmanager
    def using(self, *sources: Source) -> Iterator[None]:
        """Add these sources to every forward pass inside the `with`; they replace those outside it."""
        before, self._sources = self._sources, sources
        try:
            yield
        finally:
            self._sources = before

    def detach(self) -> None:
        """Remove the memory from the model."""
        for hook in self._hooks:
            hook.remove()


def attach(model: Any) -> Memory:
    """Attach a memory to a Hugging Face causal LM whose decoder layers have an `mlp` (Llama-shaped).

    Raises TypeError for a model without such layers.
    """
    layers = getattr(getattr(model, "model", None), "layers", None)
    if layers is None or not all(hasattr(layer, "mlp") for layer in layers):
        raise TypeError(
            f"{type(model).__name__} has no decoder layers with an `mlp`; attach needs a Llama-shaped model."
        )
    return Memory([layer.mlp for layer in layers])
