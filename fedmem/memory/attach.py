"""Memory at the anchor's layers: sources add to the outputs of their sites while they are in use.

Invariants
- The anchor's parameters, module names and state dict never change; `detach` leaves no trace.
- With no source in use the anchor's logits are bit-identical to those of the bare anchor.
- Sources add in the order in which they were given, so sums are reproducible to the bit.

    memory = attach(model)
    with memory.using(source(spec, fetched_BX)):
        logits = model(tokens).logits
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedmem.memory.kinds import Source
from fedmem.memory.sites import Site, sites_of

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]


class Memory:
    """The handle that `attach` returns; holds the sources in use."""

    def __init__(self, layers: list[dict[str, Site]]) -> None:
        self._layers = layers
        self._sources: tuple[Source, ...] = ()
        self._hooks: dict[str, list[RemovableHandle]] = {}

    def _hook_site(self, name: str) -> None:
        """Hook a site in every layer, once; sites that no source asks for cost nothing."""
        if name not in self._hooks:
            hook = [self._hook(number, name, sites[name]) for number, sites in enumerate(self._layers)]
            self._hooks[name] = hook

    def _hook(self, layer: int, name: str, site: Site) -> RemovableHandle:
        # Written flat: in decoding every call counts, and there is one for each layer and token.
        def after(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            for source in self._sources:
                if name in source.sites:
                    output = source.add(layer, name, args[0], output)
            return output

        def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (after(module, args, args[0]), *args[1:])

        if site.before:
            return site.module.register_forward_pre_hook(before)
        return site.module.register_forward_hook(_on_part(after, site.part) if site.part else after)

    @contextmanager
    def using(self, *sources: Source) -> Iterator[None]:
        """Add these sources to every forward pass inside the `with`; they replace those outside it."""
        for site in sorted({site for source in sources for site in source.sites}):
            self._hook_site(site)
        before, self._sources = self._sources, sources
        try:
            yield
        finally:
            self._sources = before

    def detach(self) -> None:
        """Remove the memory from the model."""
        for handle in [handle for handles in self._hooks.values() for handle in handles]:
            handle.remove()
        self._hooks.clear()


def _on_part(hook: Hook, part: Callable[[Tensor], Tensor]) -> Hook:
    """A hook that sees and changes one part of a module's output."""

    def on_part(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        whole = output.clone()
        view = part(whole)
        view.copy_(hook(module, args, part(output).flatten(2)).view(view.shape))
        return whole

    return on_part


def attach(model: Any) -> Memory:
    """Attach a memory to a Hugging Face causal LM.

    Raises UsageError for an architecture that `fedmem.memory.sites` does not know.
    """
    return Memory(sites_of(model))
