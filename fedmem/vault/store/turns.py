"""Decorators that run a function or method under the lock, or in one turn, of an open vault.

Invariants
- Threads of a process take turns: a decorated function holds the vault's lock from its first line to its last.
- A turn also holds the writer lock, so that no other process changes the vault meanwhile.

    @in_turn
    def cancel(vault, erasure_id): ...
"""

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from fedmem.vault.store.core import Core

Rest = ParamSpec("Rest")
Result = TypeVar("Result")
Kind = TypeVar("Kind", bound=type[Any])


class HasCore(Protocol):
    """An object that works on an open vault."""

    @property
    def core(self) -> Core: ...


Item = TypeVar("Item", bound=HasCore)


def serialised(
    work: Callable[Concatenate[Item, Rest], Result],
) -> Callable[Concatenate[Item, Rest], Result]:
    """Run a function or method under the lock of the vault that is its first argument.

    Args:
        work: takes an object with a `core` as its first argument.
    """

    @functools.wraps(work)
    def locked(item: Item, /, *args: Rest.args, **kwargs: Rest.kwargs) -> Result:
        with item.core.lock:
            return work(item, *args, **kwargs)

    return locked


def in_turn(
    work: Callable[Concatenate[Item, Rest], Result],
) -> Callable[Concatenate[Item, Rest], Result]:
    """Run a function or method in one turn of the vault that is its first argument; see `Core.turn`.

    Args:
        work: takes an object with a `core` as its first argument.
    """

    @functools.wraps(work)
    def locked(item: Item, /, *args: Rest.args, **kwargs: Rest.kwargs) -> Result:
        with item.core.turn():
            return work(item, *args, **kwargs)

    return locked


def serialised_methods(kind: Kind) -> Kind:
    """Run every public method of a class under the lock of its vault, so that no method lacks it.

    Args:
        kind: a class whose objects have a `core`. `close` is left out, because it takes the lock itself.
    """
    for name, member in list(vars(kind).items()):
        if callable(member) and not name.startswith("_") and name != "close":
            setattr(kind, name, serialised(member))
    return kind
