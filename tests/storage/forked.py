"""Run code in a forked child of the test."""

import contextlib
import os
from collections.abc import Callable


def in_child(work: Callable[[], object], hold: bool = False) -> tuple[str, Callable[[], None]]:
    """Run in a forked child; what it gave as text, and the way to end a child that is held."""
    read, write = os.pipe()
    wait, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        os.close(go)
        try:
            answer = str(work())
        except BaseException as error:  # noqa: BLE001 (told to the parent)
            answer = type(error).__name__
        os.write(write, answer.encode())
        os.close(write)
        if hold:
            os.read(wait, 1)
        os._exit(0)
    os.close(write)
    os.close(wait)
    with os.fdopen(read) as stream:
        answer = stream.read()

    def end() -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(go, b"x")  # closing would not do: later children hold the pipe too
        os.close(go)
        os.waitpid(pid, 0)

    if not hold:
        end()
    return answer, end
