"""Guards for objects that must not be used in a forked child: locks, leases, and the state of an open vault.

Invariants
- An object that was made before a fork belongs to the parent. In the child it is told so at once, before other code
  runs, and refuses every use.
- A file lock (flock) belongs to an open file description, which a child shares. The child closes its copy, so that
  it neither releases the parent's lock nor keeps it after the parent has ended.
- No lock is taken, and none is given back, while another thread forks.

    watch(lock)      # the child calls lock.disown()
"""

import os
import threading
import weakref
from typing import Protocol, Self

from fedmem.errors import Refused


class InheritedVault(Refused):
    """A vault was opened in a parent process and is used in a forked child."""

    def __init__(self) -> None:
        super().__init__(
            "This vault was opened before the process forked, and belongs to the parent. Open it again in this process."
        )


class Disownable(Protocol):
    """An object of the parent process that a forked child must give up."""

    def disown(self) -> None:
        """Give the object up, in the child, without any effect on the parent."""


_watched: "weakref.WeakSet[Disownable]" = weakref.WeakSet()
FORK_LOCK = threading.RLock()
"""Held while a fork happens, and while a file lock is taken or given back."""


def watch(item: Disownable) -> None:
    """Have `item.disown()` called in every child that this process forks from now on."""
    _watched.add(item)


class ProcessLock:
    """A re-entrant lock for threads that a forked child cannot take.

    Entering it raises InheritedVault in a process that was forked after the lock was made.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.is_inherited = False
        watch(self)

    def __enter__(self) -> Self:
        if self.is_inherited:  # before the lock: another thread may have held it when the process forked
            raise InheritedVault
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def disown(self) -> None:
        """Refuse every later use in this process."""
        self.is_inherited = True


def _after_fork_in_child() -> None:
    FORK_LOCK.release()
    for item in list(_watched):
        item.disown()
    _watched.clear()


os.register_at_fork(before=FORK_LOCK.acquire, after_in_parent=FORK_LOCK.release, after_in_child=_after_fork_in_child)
