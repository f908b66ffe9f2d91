"""The lock, the status and the requests of a training, of which each vault runs at most one at a time.

Invariants
- A vault has at most one training, over all processes. The lock (flock) is released when its process ends, so a killed
  training does not look as if it runs.
- Requests to the training are in a file that it reads after each step. No socket is needed, and no signal, which could
  reach another program that has got the process id.
- The files hold a random run id, public step numbers, a process id, and the message of an error; nothing private (I8).

    with SessionLock(vault.root) as lock:
        lock.write_status(run.id, step=3, steps=80)
        if lock.request() == "pause": ...
    request_stop(vault.root, "pause", patience=60)          # from any process
"""

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from fedmem import errors
from fedmem.errors import Busy, FedmemError
from fedmem.storage.canonical import canonical_json
from fedmem.storage.files import Files, storage_errors
from fedmem.storage.locks import FileLock, is_locked
from fedmem.vault.store.checkpoints import FOLDER

Request = Literal["pause", "cancel"]
SIZE = 2048  # bytes of the status, written at once
_TRIES = 20  # a process that tests the lock holds it for a moment


@dataclass(frozen=True)
class SessionStatus:
    """The status that a training writes.

    | field | meaning |
    |---|---|
    | pid | id of its process |
    | run | id of its run; "" until it is charged |
    | step, steps | steps done, and steps of the plan |
    | error, message | class name and message of the error that ended it; "" without one |
    """

    pid: int = 0
    run: str = ""
    step: int = 0
    steps: int = 0
    error: str = ""
    message: str = ""


class SessionLock:
    """The lock of a training, held from its construction to the end of the `with` block.

    Args:
        root: the vault's folder.

    Raises:
        Busy: another training of the vault runs.
        StorageError: the disk failed.
    """

    def __init__(self, root: Path) -> None:
        folder = root / FOLDER
        Files().make_folder(folder)
        with storage_errors("lock the training"):
            lock = _acquire(folder / "trainer")
        if lock is None:
            raise Busy("A training of this vault runs already. See `fedmem client status`, or pause it first.")
        self._lock = lock
        self._request_file, self._status = folder / "request", SessionStatus(os.getpid())
        self._request_file.unlink(missing_ok=True)  # a request to an earlier training
        self.write_status()

    def write_status(self, run: str = "", step: int = 0, steps: int = 0) -> None:
        """Write the status of the training.

        Args:
            run: id of its run; "" until it is charged.
            step: number of steps done.
            steps: number of steps of the plan.

        Raises:
            StorageError: the disk failed.
        """
        self._write(replace(self._status, run=run, step=step, steps=steps))

    def request(self) -> str:
        """Return the request to this training: "pause", "cancel" or ""."""
        try:
            return self._request_file.read_text()
        except FileNotFoundError:
            return ""

    def _write(self, status: SessionStatus) -> None:
        self._status = status
        with storage_errors("write the status of the training"):
            os.pwrite(self._lock.handle, canonical_json(asdict(status)).ljust(SIZE), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock.handle < 0:  # a forked child: the lock belongs to its parent
            return
        try:
            if error is not None:
                # The text of an unexpected error may hold private data: only its class is kept.
                text = str(error)[: SIZE // 4] if isinstance(error, FedmemError) else "Unexpected: a bug in fedmem."
                self._write(replace(self._status, error=_class_name(error), message=text))
            self._request_file.unlink(missing_ok=True)
        finally:
            self._lock.release()


def read_status(root: Path) -> SessionStatus | None:
    """Return the status of the running training, or else of the last one; None if there was none.

    Args:
        root: the vault's folder.
    """
    for _ in range(_TRIES):
        try:
            return SessionStatus(**json.loads((root / FOLDER / "trainer").read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            time.sleep(0.01)  # the file is being written
    return None


def is_training_running(root: Path) -> bool:
    """Return True if a training of this vault runs.

    Args:
        root: the vault's folder.
    """
    with contextlib.suppress(FileNotFoundError):
        return is_locked(root / FOLDER / "trainer")
    return False


def request_stop(root: Path, request: Request, patience: float) -> bool:
    """Ask the running training to stop after its current step.

    Args:
        root: the vault's folder.
        request: "pause" or "cancel".
        patience: seconds to wait for the training to stop, at least 0.

    Returns:
        True if it stopped within `patience`.

    Raises:
        StorageError: the disk failed.
    """
    path = root / FOLDER / "request"
    with storage_errors("write the request to the training"):
        path.with_suffix(".new").write_text(request)
        os.replace(path.with_suffix(".new"), path)
    deadline = time.monotonic() + patience
    while is_training_running(root):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _class_name(error: BaseException) -> str:
    """Return the name of the error's class in `fedmem.errors`; "FedmemError" for any other class."""
    return next((kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__)), "FedmemError")


def _acquire(path: Path) -> FileLock | None:
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            return FileLock(path)
        time.sleep(0.01)
    return None
