"""The bench on which the code is broken: a copy of the tree, and the fork server that runs tests in it."""

import json
import os
import queue
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DRIVER = Path(__file__).with_name("driver.py")
COPIED = ("fedmem", "policies", "sims", "tests", "server", "client", "pyproject.toml")
# Not flwr, ray or faiss: tests of their switches must be the ones to import them.
HEAVY = (
    "hypothesis",
    "torch._dynamo",
    "transformers.models.llama.modeling_llama",
    "opacus",
    "dp_accounting.pld",
    "sqlalchemy",
)
WORKERS = min(2, os.cpu_count() or 1)


class Bench:
    """One tree and its fork server."""

    def __init__(self, tree: Path, preload: tuple[str, ...]) -> None:
        self.tree = tree
        # No bytecode: a patch of equal length within one second would meet a stale .pyc.
        env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        env.pop("PYTEST_ADDOPTS", None)
        self.errors = (tree.parent / "driver.log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVER), *preload], cwd=tree, env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
        )  # fmt: skip

    def run(self, tests: list[str], patch: dict[str, str] | None = None, seconds: float = 120) -> dict[str, Any]:
        """Run the tests in the tree, with `patch` applied."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"tests": tests, "patch": patch, "seconds": seconds}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the fork server ended: {(self.tree.parent / 'driver.log').read_text('utf-8', 'replace')[-2000:]}"
        answer: dict[str, Any] = json.loads(line)
        assert answer["foreign"] == [], f"fedmem came from outside the copy: {answer['foreign']}"
        return answer

    def close(self) -> None:
        """End the fork server."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()
        self.errors.close()


@pytest.fixture(scope="session")
def new_bench() -> Iterator[Callable[..., Bench]]:
    """Makes benches on any tree; they end with the session."""
    benches: list[Bench] = []

    def make(tree: Path, preload: tuple[str, ...] = ()) -> Bench:
        benches.append(Bench(tree, preload))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


class Pool:
    """Benches on copies of this repository that share the jobs between them."""

    def __init__(self, benches: list[Bench]) -> None:
        self.idle: queue.SimpleQueue[Bench] = queue.SimpleQueue()
        for bench in benches:
            self.idle.put(bench)
        self.threads = ThreadPoolExecutor(len(benches))
        self.tree = benches[0].tree

    def submit(self, tests: list[str], patch: dict[str, str] | None = None) -> Future[dict[str, Any]]:
        """Run the tests on the next idle bench."""
        return self.threads.submit(self._run, tests, patch)

    def _run(self, tests: list[str], patch: dict[str, str] | None) -> dict[str, Any]:
        bench = self.idle.get()
        try:
            return bench.run(tests, patch, seconds=120 if patch else 600)
        finally:
            self.idle.put(bench)


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory, new_bench: Callable[..., Bench]) -> Iterator[Pool]:
    """One bench a worker, each on its own copy, since a sabotage changes a file."""
    pool = Pool([new_bench(copied(tmp_path_factory.mktemp("sabotage") / "tree"), HEAVY) for _ in range(WORKERS)])
    yield pool
    pool.threads.shutdown(cancel_futures=True)


def copied(tree: Path) -> Path:
    """A copy of what the tests need."""
    tree.mkdir()
    for name in COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy2(source, tree / name)
    return tree
