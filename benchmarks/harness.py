"""Code that all benchmarks share: options, envelope, and interleaved timing.

Invariants
- Arms are timed in turns, so that a slow moment of the machine meets all of them; a ratio is the median of the
  turns' ratios.
- stdout holds one envelope with `--json`, one line a figure without; a mean is a plain number, its interval lies under
  `interval.<name>` (docs/design.md, §11).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fedmem.cli.allocator import keep_buffers

WARM_UP = 3


def options(description: str) -> argparse.ArgumentParser:
    """Return a parser with `--json` and `--quick`. Also keep large buffers in the process (docs/design.md, §5)."""
    keep_buffers()
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="one JSON envelope on stdout")
    parser.add_argument("--quick", action="store_true", help="at most three minutes, with the same shape and checks")
    parser.add_argument("--keep", action="store_true", help="write the figures to benchmarks/results/")
    return parser


def kept(name: str) -> Path:
    """Return the path of the kept figures of a benchmark."""
    return Path(__file__).parent / "results" / f"{name}.json"


def keep(name: str, data: Mapping[str, Any]) -> None:
    """Write the figures of a benchmark, for README's table."""
    kept(name).parent.mkdir(exist_ok=True)
    kept(name).write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def emit(name: str, data: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    """Print the figures of benchmark `name`. With `--keep`, also keep them."""
    if arguments.keep:
        keep(name, data)
    if arguments.json:
        print(json.dumps({"schema": f"fedmem.bench.{name}/1", "data": data}))
        return
    for key, value in flat(data):
        print(f"{key:40} {value:.4g}" if isinstance(value, float) else f"{key:40} {value}")


def flat(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested figures as dotted names."""
    rows: list[tuple[str, Any]] = []
    for key, value in data.items():
        rows += flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return rows


class Run(Protocol):
    """One run of a long benchmark; it is done when there is a file at `path`."""

    @property
    def path(self) -> Path: ...


def finish(jobs: Sequence[Run], work: Callable[[Any], None], pool: Executor, told: Callable[[str], None]) -> None:
    """Do the unfinished runs, several at a time, and report how many are done."""
    left = [job for job in jobs if not job.path.exists()]
    for number, done in enumerate(as_completed([pool.submit(work, job) for job in left]), start=1):
        done.result()
        told(f"{number} of {len(left)} runs")


def finished(path: Path, found: Mapping[str, Any]) -> None:
    """Write the result of a run, completely or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(found), encoding="utf-8")
    temporary.rename(path)


def turns(arms: Mapping[str, Callable[[], object]], count: int) -> dict[str, np.ndarray]:
    """Return seconds of each arm in each of `count` turns, after a warm-up; the order within a turn alternates."""
    for work in [*arms.values()] * WARM_UP:
        work()
    seconds = {name: np.zeros(count) for name in arms}
    for turn in range(count):
        for name in list(arms)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            arms[name]()
            seconds[name][turn] = time.perf_counter() - start
    return seconds


def ratio(over: np.ndarray, under: np.ndarray) -> tuple[float, list[float]]:
    """Return the median of the turns' ratios, and its 95 % interval by bootstrap (seeded)."""
    ratios = over / under
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(np.median(ratios)), [float(low), float(high)]


def status(name: str) -> int:
    """Return bytes of this process as Linux reports them: "VmRSS" now, "VmHWM" at most so far."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def progress(note: str) -> None:
    """Write a line to stderr, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{note}", end="", file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """Return the machine and the commit of the measurement."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(git, capture_output=True, text=True, check=False)  # noqa: S603
    return {"cpu": _cpu(), "cores": os.cpu_count(), "python": platform.python_version(), "commit": found.stdout.strip()}


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
