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

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from fedmem.memory.kinds import Source
from fedmem.memory.sites import Site, sites_of


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
        if site.before:
            return site.module.register_forward_pre_hook(
                lambda _module, args: (self._add(layer, name, args[0], args[0]), *args[1:]) if self._sources else None
            )
        add = self._adder(layer, name, site)
        return site.module.register_forward_hook(
            lambda _module, args, output: add(args[0], output) if self._sources else None
        )

    def _adder(self, layer: int, name: str, site: Site) -> Callable[[Tensor, Tensor], Tensor]:
        if site.part is None:
            return lambda hidden, output: self._add(layer, name, hidden, output)
        part = site.part

        def add(hidden: Tensor, output: Tensor) -> Tensor:
            whole = output.clone()
            view = part(whole)
            view.copy_(self._add(layer, name, hidden, part(output).flatten(2)).view(view.shape))
            return whole

        return add

    def _add(self, layer: int, site: str, hidden: Tensor, output: Tensor) -> Tensor:
        for source in self._sources:
            if site in source.sites:
                output = source.add(layer, site, hidden, output)
        return output

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


def attach(model: Any) -> Memory:
    """Attach a memory to a Hugging Face causal LM.

    Raises UsageError for an architecture that `fedmem.memory.sites` does not know.
    """
    return Memory(sites_of(model))
