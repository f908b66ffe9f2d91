"""Guards for objects that must not be used in a forked child: locks, leases, and the state of an open vault.

Invariants
- An object that was created before a fork belongs to the parent. The child calls its `disown` before other code
  runs. From then on the object refuses every use in the child.
- A file lock (flock) belongs to an open file description, which a child shares. The child closes its copy. So it
  does not release the parent's lock, and it does not keep the lock after the parent has exited.
- The child gives up its locks last. So the parent's lock counts as held until the child has overwritten its copies of
  keys and rows, even if the parent has exited meanwhile. A child of a program that forks without Python keeps the lock.
- No file lock is acquired or released while another thread forks.

    watch(memory)                   # every forked child calls memory.disown()
    watch(lock, is_lock=True)       # and lock.disown() after those
"""

import os
import threading
import weakref
from typing import Protocol, Self

from fedmem.errors import Refused


class InheritedVault(Refused):
    """An error: a vault that the parent process opened is used in a forked child."""

    def __init__(self) -> None:
        super().__init__(
            "This vault was opened before the process forked, and belongs to the parent. Open it again in this process."
        )


class Disownable(Protocol):
    """An object of the parent process that a forked child must give up."""

    def disown(self) -> None:
        """Make the object unusable in the child, without an effect on the parent."""


_watched: "weakref.WeakSet[Disownable]" = weakref.WeakSet()
_locks: "weakref.WeakSet[Disownable]" = weakref.WeakSet()
FORK_LOCK = threading.RLock()
"""The lock that is held during a fork, and while a file lock is acquired or released."""


def watch(item: Disownable, *, is_lock: bool = False) -> None:
    """Register `item`: every child that this process forks from now on calls `item.disown()`.

    Args:
        is_lock: True for a file lock. The child disowns its locks after everything else.
    """
    (_locks if is_lock else _watched).add(item)


class ProcessLock:
    """A re-entrant lock for threads that a forked child cannot acquire.

    Entering it raises InheritedVault in a process that was forked after the lock was created.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.is_inherited = False
        watch(self)

    def __enter__(self) -> Self:
        if self.is_inherited:  # check first: another thread may have held the lock during the fork
            raise InheritedVault
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def enter_at_once(self) -> bool:
        """Acquire the lock if no other thread has it, and return True if it was acquired."""
        return not self.is_inherited and self._lock.acquire(blocking=False)

    def disown(self) -> None:
        """Refuse every later use in this process."""
        self.is_inherited = True


def _after_fork_in_child() -> None:
    FORK_LOCK.release()
    for items in (_watched, _locks):
        for item in list(items):
            item.disown()
        items.clear()


os.register_at_fork(before=FORK_LOCK.acquire, after_in_parent=FORK_LOCK.release, after_in_child=_after_fork_in_child)
