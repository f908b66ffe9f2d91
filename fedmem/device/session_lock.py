"""The one training of a vault that may run at a time: its mark, what it says of itself, and what it is asked to do.

Invariants
- At most one training per vault, over all processes; the mark is a lock (flock) that falls with its process, so a
  training that was killed is never taken for one that runs.
- It is asked through a file, looked at after each step: no socket, and no signal to a process id that another program
  may have by now.
- The files hold a random run id, public step numbers, a process id, and the sentence of an error; nothing private (I8).

    with SessionLock(vault.root) as mark:
        mark.say(run.id, step=3, steps=80)
        if mark.asked() == "pause": ...
    ask(vault.root, "pause")          # from any process
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
SIZE = 2048  # bytes of the mark, written in one piece
_TRIES = 20  # somebody who looks at the lock holds it for a moment


@dataclass(frozen=True)
class SessionStatus:
    """What a training says of itself: `run` is "" until it is charged; `error` and `message` tell how it failed."""

    pid: int = 0
    run: str = ""
    step: int = 0
    steps: int = 0
    error: str = ""
    message: str = ""


class SessionLock:
    """The mark of a training, from construction until it is closed. Raises Busy where another one runs."""

    def __init__(self, root: Path) -> None:
        folder = root / FOLDER
        Files().make_folder(folder)
        with storage_errors("mark the training"):
            lock = _taken(folder / "trainer")
        if lock is None:
            raise Busy("A training of this vault runs already. See `fedmem client status`, or pause it first.")
        self._lock = lock
        self._request, self._said = folder / "request", SessionStatus(os.getpid())
        self._request.unlink(missing_ok=True)  # it was meant for an earlier training
        self.say()

    def say(self, run: str = "", step: int = 0, steps: int = 0) -> None:
        """Say where the training stands."""
        self._write(replace(self._said, run=run, step=step, steps=steps))

    def asked(self) -> str:
        """What the training is asked to do: "pause", "cancel" or ""."""
        try:
            return self._request.read_text()
        except FileNotFoundError:
            return ""

    def _write(self, said: SessionStatus) -> None:
        self._said = said
        with storage_errors("say how the training stands"):
            os.pwrite(self._lock.handle, canonical_json(asdict(said)).ljust(SIZE), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock.handle < 0:  # a forked child: the mark is its parent's
            return
        try:
            if error is not None:
                # The text of an error that nobody foresaw may hold private data: its class alone is kept.
                text = str(error)[: SIZE // 4] if isinstance(error, FedmemError) else "Unexpected: a bug in fedmem."
                self._write(replace(self._said, error=_class(error), message=text))
            self._request.unlink(missing_ok=True)
        finally:
            self._lock.release()


def said(root: Path) -> SessionStatus | None:
    """What the training that runs, or ran last, says of itself; None where there was none."""
    for _ in range(_TRIES):
        try:
            return SessionStatus(**json.loads((root / FOLDER / "trainer").read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            time.sleep(0.01)  # it is being written
    return None


def runs(root: Path) -> bool:
    """Return True if a training of this vault runs."""
    with contextlib.suppress(FileNotFoundError):
        return is_locked(root / FOLDER / "trainer")
    return False


def ask(root: Path, request: Request, patience: float) -> bool:
    """Ask the training that runs to stop; whether it did so within `patience` seconds. It stops after its step."""
    path = root / FOLDER / "request"
    with storage_errors("ask the training"):
        path.with_suffix(".new").write_text(request)
        os.replace(path.with_suffix(".new"), path)
    limit = time.monotonic() + patience
    while runs(root):
        if time.monotonic() > limit:
            return False
        time.sleep(0.05)
    return True


def _class(error: BaseException) -> str:
    """The name of the error of `fedmem.errors` that this is, or of the root of all."""
    return next((kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__)), "FedmemError")


def _taken(path: Path) -> FileLock | None:
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            return FileLock(path)
        time.sleep(0.01)
    return None
