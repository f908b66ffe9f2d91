"""Start, kill, stop and end the workers of a run.

Invariants
- The process of the fleet opens no vault and has one thread, so that each worker is a fresh fork of it.
- A worker that ended is replaced. One that ended by itself, with another code than 0, is reported.
- Where the system allows, some workers are process 1 of a namespace of their own, with their own /proc.
"""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.stress import worker

ROLES = ("writer", "writer", "reader", "app", "writer", "writer", "reader", "writer")
NEW_PROCESSES, NEW_MOUNTS = 0x20000000, 0x00020000  # CLONE_NEWPID, CLONE_NEWNS
PRIVATE = 1 << 18 | 1 << 14  # MS_PRIVATE | MS_REC
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass
class Member:
    """A running worker. `resumes` is the time at which a stopped one goes on; 0 if it is not stopped."""

    pid: int
    role: str
    resumes: float = 0.0


class Fleet:
    """The workers of a run, one in each slot."""

    def __init__(self, base: Path, draw: Random, processes: int, threads: int, timeout: float, forks: float) -> None:
        self.base, self.draw, self.threads, self.timeout, self.forks = base, draw, threads, timeout, forks
        self.has_namespaces = in_child(lambda: LIBC.unshare(NEW_PROCESSES | NEW_MOUNTS) == 0) is True
        LIBC.prctl(SUBREAPER, 1, 0, 0, 0)  # the forked children of a killed worker become children of this process
        self.started = self.kills = self.stops = 0
        self.crashes: list[str] = []
        self._roles: dict[int, str] = {}
        self.members = [self.start(slot) for slot in range(processes)]

    def start(self, slot: int) -> Member:
        """Fork the worker of a slot."""
        self.started += 1
        role, seed = ROLES[slot % len(ROLES)], f"{self.draw.random()}"
        namespace = self.has_namespaces and self.started % 3 == 0
        home = os.open("/proc/self/ns/pid", os.O_RDONLY) if namespace else -1
        if namespace:
            LIBC.unshare(NEW_PROCESSES)  # of the next child; this process stays where it is
        pid = os.fork()
        if pid == 0:
            if namespace:
                own_proc()
            worker.main(self.base, role, seed, self.threads, self.timeout, self.forks)
        if namespace:
            LIBC.setns(home, NEW_PROCESSES)
            os.close(home)
        self._roles[pid] = role
        return Member(pid, role)

    def tend(self) -> None:
        """Replace the workers that ended, and let stopped ones go on when their time has come."""
        for slot, member in enumerate(self.members):
            if member.resumes and time.monotonic() > member.resumes:
                os.kill(member.pid, signal.SIGCONT)
                member.resumes = 0.0
            pid, status = os.waitpid(member.pid, os.WNOHANG)
            if pid:
                self._note(member.role, status)
                self.members[slot] = self.start(slot)
        members = {member.pid for member in self.members}
        self._reap([pid for pid in children() if pid not in members])

    def kill(self) -> None:
        """Kill a drawn worker."""
        slot = self.draw.randrange(len(self.members))
        os.kill(self.members[slot].pid, signal.SIGKILL)
        self._note(self.members[slot].role, os.waitpid(self.members[slot].pid, 0)[1])
        self.kills += 1
        self.members[slot] = self.start(slot)

    def stop(self) -> None:
        """Stop a drawn reader for a moment."""
        readers = [member for member in self.members if member.role == "reader" and not member.resumes]
        if readers:
            member = self.draw.choice(readers)
            os.kill(member.pid, signal.SIGSTOP)
            member.resumes = time.monotonic() + self.draw.uniform(0.1, 2.0)
            self.stops += 1

    def end(self, patience: float) -> list[str]:
        """End all workers, and return a sentence for each one that did not end in time."""
        for member in self.members:
            os.kill(member.pid, signal.SIGCONT)
            os.kill(member.pid, signal.SIGTERM)
        deadline = time.monotonic() + patience
        while (left := children()) and time.monotonic() < deadline:
            self._reap(left)
            time.sleep(0.02)
        return [self._give_up(pid) for pid in left]

    def _reap(self, pids: list[int]) -> None:
        """Let go of the processes that have ended."""
        for pid in pids:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._note(self._roles.get(pid, "forked child"), status)

    def _give_up(self, pid: int) -> str:
        """Kill a process that does not end, after it wrote the stacks of its threads."""
        os.kill(pid, signal.SIGUSR1)
        time.sleep(0.5)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return f"a {self._roles.get(pid, 'forked child')} did not end"

    def _note(self, role: str, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        if code not in (0, -signal.SIGKILL):
            self.crashes.append(f"a {role} ended with {code}")


def children() -> list[int]:
    """Return the processes whose parent is this one."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text("ascii").split()]


def own_proc() -> None:
    """Mount the /proc of this process's namespace, where only this process and its children see it."""
    if LIBC.unshare(NEW_MOUNTS) == 0 and LIBC.mount(b"none", b"/", None, PRIVATE, None) == 0:
        LIBC.mount(b"proc", b"/proc", b"proc", 0, None)


def in_child(work: Callable[[], Any]) -> Any:
    """Return the result of `work`, as JSON, from a forked child; raises RuntimeError if it gave none."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(read)
            with os.fdopen(write, "w") as stream:
                json.dump(work(), stream)
            status = 0
        except BaseException:  # noqa: BLE001 -- the child must not go on as the parent
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as stream:
        answer = stream.read()
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("a helper of the run failed; its error is above")
    return json.loads(answer)
