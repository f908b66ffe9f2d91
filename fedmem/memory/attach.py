"""Attach memory to an anchor: a source changes the outputs of its sites while it is in use.

Invariants
- The anchor's parameters, module names and state dict never change. `detach` removes every hook.
- With no source in use the anchor's logits are bit-identical to those of the bare anchor.
- Sources are added in the order of the arguments of `using`, so sums are reproducible to the bit.
- Sources are in use in the thread or task that entered `using`, and in no other.
- Each site refuses a source whose number of items differs from the batch.
- A forward pass with a KV cache, as in generation, is refused if no `using` was entered.
- A layer that gradient checkpointing computes again in a backward pass outside `using` is refused, since its first
  pass may have used sources.
- Rows of a higher precision than the model's are added in their precision; rows of a lower one are refused.

    memory = attach(model)
    with memory.using(source(spec, fetched_BX)):
        logits = model(tokens).logits
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache

from fedmem.errors import UsageError
from fedmem.memory.kinds import ActiveMemory
from fedmem.memory.sites import Site, sites_of
from fedmem.storage import forks

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]


class Memory:
    """A memory attached to a model, with the sources in use; `attach` returns it.

    Args:
        model: the model; it gets one hook at once, and one for each site when a source first uses the site.
        layers: the sites of each layer by name.
    """

    def __init__(self, model: nn.Module, layers: list[dict[str, Site]]) -> None:
        self._model, self._layers = model, layers
        # None: no `using` was entered in this thread or task.
        self._sources: ContextVar[tuple[ActiveMemory, ...] | None] = ContextVar("sources", default=None)
        self._hooks: dict[str, list[RemovableHandle]] = {}
        self._hooking = Lock()
        forks.watch(self)
        self._hook(set())

    def disown(self) -> None:
        """Start with a free lock in a forked child: a thread of the parent may hold that of the parent."""
        self._hooking = Lock()

    def _hook(self, names: set[str]) -> None:
        """Add hooks to the model and to these sites of every layer, each once. Other sites get no hook."""
        with self._hooking:
            if not self._hooks:
                self._hooks["model"] = [self._hook_model()]
            new = sorted(names - self._hooks.keys())
            for name in new:
                self._hooks[name] = [self._hook_site(n, name, sites[name]) for n, sites in enumerate(self._layers)]
            if new:
                torch.compiler.reset()  # A compiled model does not look for new hooks.

    def _hook_model(self) -> RemovableHandle:
        sources = self._sources

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            cached = kwargs.get("past_key_values") is not None or any(isinstance(value, Cache) for value in args)
            if cached and sources.get() is None:
                raise UsageError(
                    "This model generates with a memory attached that is not in use in this thread or task. Enter "
                    "`with memory.using(…)` in the thread that generates, `memory.using()` for the bare anchor, or "
                    "detach the memory."
                )

        return self._model.register_forward_pre_hook(before, with_kwargs=True)

    def _hook_site(self, layer: int, name: str, site: Site) -> RemovableHandle:
        sources_in_use = self._sources

        # Written flat: in decoding every call counts, and there is one for each layer and token.
        def after(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            sources = sources_in_use.get()
            if sources is None and _is_recomputed():
                raise UsageError(
                    "A backward pass with gradient checkpointing computes layers again outside `with memory.using(…)`. "
                    "Call backward inside it, in a thread that entered it; for the bare anchor under `memory.using()`."
                )
            for source in sources or ():
                if name in source.sites:
                    if source.items is not None and source.items != len(output):
                        raise _batch_mismatch(source.items, len(output))
                    add = source.add if source.dtype == output.dtype else _add_in_precision_of(source)
                    output = add(layer, name, args[0], output)
            return output

        def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (after(module, args, args[0]), *args[1:])

        if site.before:
            return site.module.register_forward_pre_hook(before)
        return site.module.register_forward_hook(_on_part(after, site.part) if site.part else after)

    @contextmanager
    def using(self, *sources: ActiveMemory) -> Iterator[None]:
        """Use these sources in every forward pass inside the `with`. They replace the sources of an outer `with`.

        The sources are in use in the current thread or task and in tasks that it starts. Threads that it starts do
        not use them. A generator must not yield inside the `with`: its caller would use the sources too.

        Args:
            sources: memory in use, added in this order; none for the bare anchor.

        Raises:
            UsageError: from a forward pass inside, if a source's number of items differs from the batch.
        """
        self._hook({site for source in sources for site in source.sites})
        outer = self._sources.set(sources)
        try:
            yield
        finally:
            self._sources.reset(outer)

    def detach(self) -> None:
        """Remove every hook of this memory from the model."""
        with self._hooking:
            for handle in [handle for handles in self._hooks.values() for handle in handles]:
                handle.remove()
            self._hooks.clear()


def _batch_mismatch(items: int, batch: int) -> UsageError:
    return UsageError(
        f"The memory in use has rows for {items} items, the model was given {batch}. Give one row for each item, for "
        "beams and return sequences by fetched_BX.repeat_interleave(n, dim=0), or one for all by make_shared_source(…)."
    )


def _is_recomputed() -> bool:
    """Return True inside a backward pass, where gradient checkpointing runs a layer for the second time."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _add_in_precision_of(source: ActiveMemory) -> Callable[[int, str, Tensor, Tensor], Tensor]:
    """Return the `add` of a source whose rows have another type than the model."""

    def add(layer: int, name: str, hidden: Tensor, output: Tensor) -> Tensor:
        if torch.is_autocast_enabled(output.device.type):  # it casts by itself
            return source.add(layer, name, hidden, output)
        if torch.promote_types(source.dtype, output.dtype) != source.dtype:
            raise UsageError(
                f"The memory in use is {source.dtype}, less precise than the model's {output.dtype}. "
                "Give its rows in the model's type or float32, as `fetched_X.float()`."
            )
        return source.add(layer, name, hidden.to(source.dtype), output.to(source.dtype)).to(output.dtype)

    return add


def _on_part(hook: Hook, part: Callable[[Tensor], Tensor]) -> Hook:
    """Return a hook that applies `hook` to one part of a module's output."""

    def on_part(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        changed = output.clone()
        view = part(changed)
        view.copy_(hook(module, args, part(output).flatten(2)).view(view.shape))
        return changed

    return on_part


def attach(model: Any) -> Memory:
    """Attach a memory to a Hugging Face causal language model.

    Args:
        model: the model; only hooks are added to it.

    Returns:
        The memory, with no source in use.

    Raises:
        UsageError: the architecture is not supported (`fedmem.memory.sites.SUPPORTED`).
    """
    return Memory(model, sites_of(model))
