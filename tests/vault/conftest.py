"""A home of its own for every test, a file layer that fails on command, and small vaults."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fedmem.storage.files import Files
from fedmem.vault.vault import NewRecord, Vault

CANARY = "canary-text-7f3a of a person"
TOPIC = "topic-health-9c1e"


class PowerCut(BaseException):
    """The machine stops here: nothing that catches errors may see it."""


class Faults(Files):
    """A file layer that fails at the n-th changing operation.

    `at` counts from 0; None never fails. `kind` "cut" stops the machine, "full" says ENOSPC now and ever after.
    """

    PowerCut = PowerCut

    def __init__(self) -> None:
        super().__init__(self._announce)
        self.at: int | None = None
        self.kind = "cut"
        self.seen: list[str] = []
        self.watch: Callable[[str, Path], None] = lambda operation, path: None

    def arm(self, kind: str, at: int | None) -> None:
        """Fail at operation `at` from now."""
        self.kind, self.at, self.seen = kind, at, []

    def _announce(self, operation: str, path: Path) -> None:
        if operation == "read":
            return
        self.watch(operation, path)
        self.seen.append(operation)
        if self.at is None or len(self.seen) - 1 < self.at:
            return
        if self.kind == "full":
            # A full disk refuses what needs space and goes on removing.
            if operation in ("write", "fsync", "mkdir"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return
        if len(self.seen) - 1 == self.at:
            raise PowerCut


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """FEDMEM_HOME, empty and private to the test."""
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # cuts are simulated; test_files checks the real calls
    return tmp_path / "home"


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def vaults(tmp_path: Path, faults: Faults) -> Iterator["Vaults"]:
    made = Vaults(tmp_path, faults)
    yield made
    made.close()


class Vaults:
    """Makes, opens and closes vaults of the test."""

    CANARY, TOPIC = CANARY, TOPIC

    def __init__(self, base: Path, faults: Faults) -> None:
        self.base, self.faults = base, faults
        self.opened: list[Vault] = []

    def create(self, name: str = "v", **options: object) -> Vault:
        self.opened.append(Vault.create(self.base / name, subject="alice", files=self.faults, **options))
        return self.opened[-1]

    def open(self, name: str = "v", **options: object) -> Vault:
        self.opened.append(Vault.open(self.base / name, subject="alice", files=self.faults, **options))
        return self.opened[-1]

    def reopen(self, vault: Vault, **options: object) -> Vault:
        """As another process would find it."""
        vault.close()
        return self.open(vault.root.name, **options)

    def close(self) -> None:
        for vault in self.opened:
            vault.close()

    def records(self, n: int = 3, topic: str | None = TOPIC) -> list[NewRecord]:
        rng = np.random.default_rng(n)
        vectors = rng.standard_normal((n, 8)).astype(np.float32)
        return [NewRecord(f"{CANARY} {i}", topic, (i,), vectors[i], "release-1") for i in range(n)]

    def block(self, vault: Vault, topic: str = TOPIC, rows: bytes = b"rows-canary-51d2" * 2000) -> str:
        """Train nothing, seal `rows`; the block's id."""
        run = vault.begin_run(topic, "release-1", {"steps": 1}, "digest", [], {"sigma": 1.0})
        return vault.finish_run(run, topic, "release-1", rows, 2, 4, 8).id
