"""A thread that notices erasures by other processes for open vaults that are idle.

Invariants
- One daemon thread looks at all open vaults of a process. It ends when none is left, and starts again when needed.
- It only forgets: it never writes, and never waits for a lock that another thread holds. A thread that works with a
  vault notices an erasure by itself.
- A forked child has no such thread until it opens a vault itself.

    watch(core)      # while the vault is open
"""

import contextlib
import threading
import time
import weakref
from typing import Protocol

from fedmem.errors import FedmemError
from fedmem.storage import forks

INTERVAL = 0.2  # seconds; an erasure waits longer than this for readers


class Watched(Protocol):
    """An open vault."""

    @property
    def is_closed(self) -> bool: ...

    def notice(self) -> None:
        """Forget keys and content if something was erased."""


class _Watcher:
    """The thread of this process, and the vaults that it looks at."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._vaults: weakref.WeakSet[Watched] = weakref.WeakSet()
        self._is_running = False
        forks.watch(self)

    def add(self, vault: Watched) -> None:
        with self._guard:
            self._vaults.add(vault)
            if not self._is_running:
                threading.Thread(target=self._run, name="fedmem-watcher", daemon=True).start()
                self._is_running = True

    def _run(self) -> None:
        while self._look():
            time.sleep(INTERVAL)

    def _look(self) -> bool:
        """Let each open vault look for erasures. Return False, and end the thread, if none is open."""
        with self._guard:
            vaults = [vault for vault in self._vaults if not vault.is_closed]
            self._is_running = bool(vaults)
        for vault in vaults:
            with contextlib.suppress(FedmemError):  # the next use of the vault raises it again
                vault.notice()
        return bool(vaults)

    def disown(self) -> None:
        global _watcher
        _watcher = _Watcher()


_watcher = _Watcher()


def watch(vault: Watched) -> None:
    """Look for erasures for an open vault until it is closed.

    Args:
        vault: the open vault. The watcher holds no strong reference to it.
    """
    _watcher.add(vault)
