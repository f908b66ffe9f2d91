"""A real process killed, or told by the kernel that the disk failed, at each system call that changes a file.

Invariants
- Every point starts from a fresh copy of the same vault; the process is a forked child, stopped by `tracer`.
- A killed process leaves an outcome of the operation; what it had acknowledged is there.
- A failed call ends in StorageError (exit 11), or PartialErasure (exit 5) past the point of no return, or in nothing at
  all where it did not matter; and the vault opens again.
- What clears up after a kill may be killed too, and a process that goes on after a failure may be killed then.

    for name, run in points(place, scratch):
        problem = run(scratch)
"""

import contextlib
import errno
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from fedmem import erasure
from fedmem.errors import FedmemError, PartialErasure, StorageError
from fedmem.vault.vault import Vault
from tests.sweep.operations import (
    OPERATIONS,
    OTHER,
    Operation,
    Place,
    Point,
    Run,
    examine,
    more,
    opened,
    rows_of,
    some_records,
)
from tests.sweep.tracer import HALF, KILL, SYNCS, WRITES, Judge, Say, Traced, trace

NEED_ROOM = frozenset({"write", "pwrite64", "open", "openat", "mkdir", "fallocate"})
DONE, MORE = b"done", b"more"
FAILED, PARTIAL = (str(kind.exit_code).encode() for kind in (StorageError, PartialErasure))
LATER = rows_of(some_records(OTHER, 1))
Work = Callable[[Vault, Operation, Callable[[], None], Say], None]


def points(place: Place, scratch: Path) -> Iterator[Point]:
    """One kill, half write and failure of each kind at every call of every operation."""
    for operation in OPERATIONS.values():
        for number, call in enumerate(calls(place, operation, scratch)):
            name = f"{operation.name}/{number}-{call}"
            yield f"kill/{name}", _killed(place, operation, number, KILL)
            if call in WRITES:
                yield f"half/{name}", _killed(place, operation, number, HALF)
            for fault in FAULTS:
                yield f"{fault}/{name}", _failed(place, operation, number, fault)


def pairs(place: Place, scratch: Path) -> Iterator[Point]:
    """Drawn without end, the same each time: a kill and then a kill in what clears up after it; a failure and then a
    kill in what goes on. Of operations that leave a vault in any case."""
    draw = random.Random(0)
    whole = [operation for operation in OPERATIONS.values() if operation.again is None]
    known = [(operation.name, len(calls(place, operation, scratch))) for operation in whole]
    while True:
        name, count = draw.choice(known)
        for kind in PAIRS:
            yield pair(place, f"{kind}/{name}/{draw.randrange(count)}/{draw.randrange(40)}")


def pair(place: Place, name: str) -> Point:
    """The point of this name, such as "eio-kill/learn/16/14"."""
    kind, operation, first, second = name.split("/")
    return name, PAIRS[kind](place, OPERATIONS[operation], int(first), int(second))


def calls(place: Place, operation: Operation, scratch: Path) -> list[str]:
    """The calls of one undisturbed run."""
    done = _run(place.copy(scratch), operation, lambda number, call: None)
    if done.said != DONE or done.code:
        raise RuntimeError(f"{operation.name} does not work undisturbed: {done}")
    return done.calls


def _killed(place: Place, operation: Operation, number: int, how: str) -> Run:
    def run(scratch: Path) -> str:
        copy = place.copy(scratch)
        done = _run(copy, operation, _at(number, how))
        if not done.killed:
            return "the process was not killed"
        return operation.judge(copy, acknowledged=done.said == DONE)

    return run


def _failed(place: Place, operation: Operation, number: int, fault: str) -> Run:
    def run(scratch: Path) -> str:
        copy = place.copy(scratch)
        # Every other process dies at once after the failure, so that closing mends nothing.
        done = _run(copy, operation, FAULTS[fault](number), work=_dies if number % 2 else _tries)
        if done.said not in _endings(operation):
            return f"it ended with {done.said!r} (exit {done.code})"
        return operation.judge(copy, acknowledged=done.said != FAILED)

    return run


def _killed_twice(place: Place, operation: Operation, first: int, second: int) -> Run:
    def run(scratch: Path) -> str:
        copy = place.copy(scratch / "first")
        done = _run(copy, operation, _at(first, KILL))
        again = copy.copy(scratch / "second")
        cut = trace(lambda begin, say: _clear_up(again, begin), again.folder, _at(second, KILL))
        if cut.calls and not cut.killed:  # it has fewer calls than that
            again = copy.copy(scratch / "second")
            trace(lambda begin, say: _clear_up(again, begin), again.folder, _at(second % len(cut.calls), KILL))
        return operation.judge(again, acknowledged=done.said == DONE)

    return run


def _failed_then_killed(place: Place, operation: Operation, first: int, second: int) -> Run:
    def run(scratch: Path) -> str:
        copy = place.copy(scratch)
        done = _run(copy, operation, _both(first, first + 1 + second), work=_goes_on)
        said, went_on = done.said.removesuffix(MORE), done.said.endswith(MORE)
        if said not in _endings(operation) | {b""}:
            return f"it ended with {said!r} (exit {done.code})"
        old = operation.old(place.before) if said in (FAILED, b"") else ()
        new = (operation.new(place.before),)
        one_more = [tuple(more(state, records=LATER) for state in states) for states in (old, new)]
        return examine(copy, *one_more) if went_on else examine(copy, old + one_more[0], new + one_more[1])

    return run


def _endings(operation: Operation) -> set[bytes]:
    return {DONE, FAILED, PARTIAL} if operation.erases else {DONE, FAILED}


def _run(place: Place, operation: Operation, judge: Judge, *, work: Work | None = None) -> Traced:
    def child(begin: Callable[[], None], say: Say) -> None:
        with opened(place) as vault:
            (work or _tries)(vault, operation, begin, say)

    return trace(child, place.folder, judge)


def _tries(vault: Vault, operation: Operation, begin: Callable[[], None], say: Say) -> None:
    act = operation.prepare(vault)
    begin()
    try:
        act()
        say(DONE)
    except FedmemError as error:
        say(str(error.exit_code).encode())


def _dies(vault: Vault, operation: Operation, begin: Callable[[], None], say: Say) -> None:
    _tries(vault, operation, begin, say)
    os.kill(os.getpid(), signal.SIGKILL)


def _goes_on(vault: Vault, operation: Operation, begin: Callable[[], None], say: Say) -> None:
    _tries(vault, operation, begin, say)
    with contextlib.suppress(FedmemError):
        vault.add_records(some_records(OTHER, 1))
        say(MORE)


def _clear_up(place: Place, begin: Callable[[], None]) -> None:
    begin()
    with opened(place) as vault:
        erasure.resume(vault)


def _at(number: int, verdict: str | int) -> Judge:
    return lambda now, call: verdict if now == number else None


def _both(failing: int, killed: int) -> Judge:
    return lambda now, call: {failing: errno.EIO, killed: KILL}.get(now)


def _full(number: int) -> Judge:
    return lambda now, call: errno.ENOSPC if now >= number and call in NEED_ROOM else None


def _read_only(number: int) -> Judge:
    return lambda now, call: errno.EROFS if now >= number and call not in SYNCS else None


FAULTS: dict[str, Callable[[int], Judge]] = {
    "eio": lambda number: _at(number, errno.EIO),
    "full": _full,
    "read-only": _read_only,
}
PAIRS: dict[str, Callable[[Place, Operation, int, int], Run]] = {
    "kill-kill": _killed_twice,
    "eio-kill": _failed_then_killed,
}
