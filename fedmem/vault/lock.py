"""One writer per vault.

Invariants
- At most one process writes; a second one is told so at once and never waits in silence.
- The lock falls with the process, `kill -9` included (flock), so no stale lock is ever cleared by hand.
"""

import fcntl
import os
from pathlib import Path

from fedmem.errors import Busy
from fedmem.vault.fs import storage_errors


class WriterLock:
    """An exclusive flock on one file, held from construction until `release`.

    Raises:
        Busy: another process, or another vault object of this one, writes.
    """

    def __init__(self, path: Path, what: str = "vault") -> None:
        with storage_errors(f"open the lock of the {what}"):
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._handle)
            raise Busy(
                f"Another process writes to this {what}. Close the program that uses it, or wait, and repeat."
            ) from None

    def release(self) -> None:
        """Give the lock back; calling it twice is fine."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
