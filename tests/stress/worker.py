"""A worker: a process that opens the vault, lets several threads use it for a moment, closes it, and begins again.

Invariants
- A worker goes on after every error, until it is killed or gets SIGTERM. Then it exits with 0.
- A forked child tries what it inherited, which must be refused. It then opens the vault by itself, and writes.
- A worker ends after its forked children.
"""

import faulthandler
import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from fedmem.sdk.client import Client
from fedmem.vault.vault import Vault
from tests.stress import content
from tests.stress.actions import App, Facts, Reader, Writer, attempt
from tests.stress.journal import Journal

CRASHED = 70


class Worker:
    """One process of the run.

    Attributes:
        role: writer, app or reader.
        forks: probability that a thread forks before a call.
    """

    def __init__(self, base: Path, role: str, seed: str, threads: int, timeout: float, forks: float) -> None:
        self.base, self.role, self.threads, self.timeout, self.forks = base, role, threads, timeout, forks
        self.draw, self.journal = Random(seed), Journal(base / "journals")
        self.is_ending = threading.Event()
        self.children: list[int] = []

    def run(self) -> None:
        """Open, use and close the vault, until SIGTERM."""
        signal.signal(signal.SIGTERM, lambda *_: self.is_ending.set())
        while not self.is_ending.is_set():
            self.session()
        while self.children:
            self.reap()
            time.sleep(0.02)

    def session(self) -> None:
        """Open the vault, let the threads use it for a drawn time, and close it."""
        opened = self.open()
        if opened is None:
            time.sleep(0.05)
            return
        until = time.monotonic() + self.draw.uniform(0.2, 1.2)
        seeds = [self.draw.random() for _ in range(self.threads)]
        threads = [threading.Thread(target=self.use, args=(opened, seed, until)) for seed in seeds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        attempt(self.journal, "close", lambda: opened.close() or {})
        self.reap()

    def reap(self) -> None:
        """Let go of the children that have ended; end with the code of one that failed."""
        for child in [*self.children]:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                self.children.remove(child)
            if status:
                os._exit(CRASHED)

    def open(self) -> Any:
        """Open the vault as the role does; None if that failed."""
        vaults: list[Any] = []
        root, timeout = self.base / "vault", self.timeout

        def work() -> Facts:
            if self.role == "app":
                vaults.append(Client.open(content.SUBJECT, root, "keyfile", timeout=timeout))
            else:
                is_writer = self.role == "writer"
                vaults.append(Vault.open(root, subject=content.SUBJECT, write=is_writer, timeout=timeout))
            return {}

        attempt(self.journal, "open-to-read" if self.role == "reader" else "open", work)
        return vaults[0] if vaults else None

    def use(self, opened: Any, seed: float, until: float) -> None:
        """Make calls on the open vault until a time."""
        draw = Random(seed)
        kind: Callable[..., Any] = {"writer": Writer, "app": App, "reader": Reader}[self.role]
        actor = kind(opened, self.journal, draw, self.base)
        while time.monotonic() < until and not self.is_ending.is_set() and not actor.is_stale:
            if draw.random() < self.forks:
                self.fork(actor)
            actor.step()

    def fork(self, actor: Any) -> None:
        """Fork while other threads are at work."""
        child = os.fork()
        if child:
            self.children.append(child)
            return
        status = CRASHED
        try:
            self.journal, self.children = Journal(self.base / "journals"), []
            self.in_child(actor)
            status = 0
        finally:
            os._exit(status)

    def in_child(self, actor: Any) -> None:
        """Try the inherited vault, then open it anew and use it."""
        gc.freeze()
        actor.journal = self.journal
        vault = actor.client._opened if self.role == "app" else actor.vault
        attempt(self.journal, "inherited", lambda: {"records": len(vault.records(None))})
        opened = self.open()
        if opened is None:
            return
        kind: Callable[..., Any] = {"writer": Writer, "app": App, "reader": Reader}[self.role]
        own = kind(opened, self.journal, actor.draw, self.base)
        for _ in range(3):
            own.add() if self.role == "writer" else own.step()
        attempt(self.journal, "close", lambda: opened.close() or {})


def main(base: Path, role: str, seed: str, threads: int, timeout: float, forks: float) -> None:
    """Be a worker in a process that was just forked; never return."""
    status = CRASHED
    try:
        gc.freeze()
        os.environ["FEDMEM_HOME"] = str(base / "home")
        faulthandler.register(signal.SIGUSR1, (base / f"stacks-{os.getpid()}-{seed}").open("w"), all_threads=True)
        Worker(base, role, seed, threads, timeout, forks).run()
        status = 0
    finally:
        os._exit(status)
