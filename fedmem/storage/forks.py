"""Guards for objects that must not be used in a forked child: locks, leases, and the state of an open vault.

Invariants
- An object that was created before a fork belongs to the parent. The child calls its `disown` before other code
  runs. From then on the object refuses every use in the child.
- A file lock (flock) belongs to an open file description, which a child shares. The child closes its copy. So it
  does not release the parent's lock, and it does not keep the lock after the parent has exited.
- The child gives up its locks last. So the parent's lock counts as held until the child has overwritten its copies of
  keys and rows, even if the parent has exited meanwhile. A child of a program that forks without Python keeps the lock.
- No file lock is acquired or released while another thread forks.
- SQLite keeps state of its own for each open file, which a child would inherit and take for its own. So connections are
  closed before a fork (`Suspendable`). A file whose connection was in use for too long is never opened in the child.

    watch(memory)                   # every forked child calls memory.disown()
    watch(lock, is_lock=True)       # and lock.disown() after those
"""

import os
import threading
import time
import weakref
from collections import deque
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


class Suspendable(Protocol):
    """An object that must not be in use while the process forks."""

    def suspend(self, timeout: float) -> bool:
        """Close what a child must not inherit, and refuse every use until `resume`. Return False if it stays in use."""

    def resume(self) -> None:
        """Allow the use again, in the parent."""

    def forbid(self) -> None:
        """Make sure, in the child, that the file is not opened there: the object was in use during the fork."""


_watched: "weakref.WeakSet[Disownable]" = weakref.WeakSet()
_locks: "weakref.WeakSet[Disownable]" = weakref.WeakSet()
_suspendable: "weakref.WeakSet[Suspendable]" = weakref.WeakSet()
_forking = threading.local()
PATIENCE = 5.0  # seconds that a fork waits for objects in use
FORK_LOCK = threading.RLock()
"""The lock that is held during a fork, and while a file lock is acquired or released."""


def watch(item: Disownable, *, is_lock: bool = False) -> None:
    """Register `item`: every child that this process forks from now on calls `item.disown()`.

    Args:
        item: an object of this process; watching it does not keep it alive.
        is_lock: True for a file lock. The child disowns its locks after everything else.
    """
    (_locks if is_lock else _watched).add(item)


def suspend_at_fork(item: Suspendable) -> None:
    """Register `item`: it is suspended before each fork, and resumed in the parent after it.

    Args:
        item: an object of this process; registering it does not keep it alive.
    """
    with FORK_LOCK:
        _suspendable.add(item)


class ProcessLock:
    """A re-entrant lock that threads get in the order in which they asked, and that a forked child cannot acquire.

    Entering it raises InheritedVault in a process that was forked after the lock was created.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()  # held for a moment
        self._waiting: deque[threading.Lock] = deque()
        self._owner, self._depth = 0, 0
        self.is_inherited = False
        watch(self)

    def __enter__(self) -> Self:
        if self.is_inherited:  # check first: another thread may have held the lock during the fork
            raise InheritedVault
        if not self._take():
            self._wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire_within(self, timeout: float) -> bool:
        """Acquire the lock if it is free within `timeout` seconds; 0 does not wait.

        Returns:
            True if it was acquired; then call `release`.
        """
        return not self.is_inherited and (self._take() or (timeout > 0 and self._wait(timeout)))

    def release(self) -> None:
        """Release the lock once; the thread that waited longest gets it. Do nothing in a forked child."""
        if self.is_inherited:  # another thread of the parent may have held the guard during the fork
            return
        with self._guard:
            self._depth -= 1
            if self._depth == 0:
                self._pass_on()

    def _pass_on(self) -> None:
        self._owner = 0
        if self._waiting:
            self._owner = -1  # reserved for the thread that wakes up
            self._waiting.popleft().release()

    def _take(self) -> bool:
        thread = threading.get_ident()
        with self._guard:
            if self._owner in (0, thread):
                self._owner = thread
                self._depth += 1
                return True
        return False

    def _wait(self, timeout: float = -1) -> bool:
        """Wait for the lock, without a limit if `timeout` is -1. Return True if it was acquired."""
        thread, gate = threading.get_ident(), threading.Lock()
        with self._guard:
            if self._owner == 0:
                self._owner, self._depth = thread, 1
                return True
            gate.acquire()
            self._waiting.append(gate)
        try:
            is_open = gate.acquire(timeout=timeout)  # `release` opens it
        except BaseException:  # Ctrl-C
            self._stop_waiting(gate, pass_on=True)
            raise
        if not is_open:
            is_open = not self._stop_waiting(gate, pass_on=False)
        if is_open:
            self._owner, self._depth = thread, 1
        return is_open

    def _stop_waiting(self, gate: threading.Lock, *, pass_on: bool) -> bool:
        """Leave the queue and return True, or return False if the lock was handed over just now."""
        with self._guard:
            if gate in self._waiting:
                self._waiting.remove(gate)
                return True
            if pass_on:
                self._pass_on()
            return False

    def disown(self) -> None:
        """Refuse every later use in this process."""
        self.is_inherited = True


def _before_fork() -> None:
    """Suspend what must not be in use, then hold `FORK_LOCK`: in this order, as a vault in use may need that lock."""
    deadline = time.monotonic() + PATIENCE
    with FORK_LOCK:
        items = list(_suspendable)
    _forking.suspended = [item for item in items if item.suspend(max(0.0, deadline - time.monotonic()))]
    FORK_LOCK.acquire()


def _after_fork_in_parent() -> None:
    FORK_LOCK.release()
    for item in _forking.suspended:
        item.resume()
    _forking.suspended = []


def _after_fork_in_child() -> None:
    FORK_LOCK.release()
    for suspendable in list(_suspendable):
        if suspendable not in _forking.suspended:
            suspendable.forbid()
    _suspendable.clear()
    for items in (_watched, _locks):
        inherited = list(items)
        items.clear()  # first: `disown` may register what the child goes on with, for its own children
        for item in inherited:
            item.disown()
    _forking.suspended = []


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
