"""A federation's own cost, and what it learns: `python -m benchmarks.federation --json [--quick]`.

- Empty rounds at 10, 100 and 1,000 devices: fedmem with schema, egress lines and journal on, Flower's messages alone,
  Flower on Ray, and pfl-research (see `peers` for how to install it; without it its figures are missing).
- Rounds with at least half a second of local work on each device: CPU over that of a plain loop and of the peers.
- Peak memory at 10 and at 1,000 devices.
- `pretrain`: federated over central held-out loss at equal tokens, and bytes below an exchange of gradients each step.

Each arm runs in a process of its own, in turns. CPU is that of the process and of all that it started.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.federation.pretrain import plot, pretrained

# Rounds at each number of devices: a second or more in each process, on a quiet machine.
ROUNDS = {10: 200, 100: 30, 1000: 4}
RAY_ROUNDS = {10: 10, 100: 4, 1000: 2}
TURNS, QUICK_TURNS = 3, 1
DEVICES = 8
WORK, QUICK_WORK = (3, 40), (1, 20)
"""Rounds with work, and the local steps of each device in one."""
PEERS = ("bare_grid", "pfl", "ray")

Found = dict[str, Any]


def arm(name: str, devices: int, rounds: int, steps: int = 0) -> Found:
    """Run one arm and return what it printed."""
    harness.progress(f"{name}, {devices} devices")
    command = [sys.executable, "-m", "benchmarks.federation.arm", name, *map(str, (devices, rounds + 1, steps))]
    threads = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, env=threads)  # noqa: S603
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def arms() -> list[str]:
    """Return fedmem and the installed frameworks to compare with."""
    return ["fedmem", *(peer for peer in PEERS if peer != "pfl" or find_spec("pfl"))]


def empty(turns: int) -> dict[str, dict[int, list[Found]]]:
    """Time empty rounds of every arm, in turns."""
    found: dict[str, dict[int, list[Found]]] = {name: {size: [] for size in ROUNDS} for name in arms()}
    for turn in range(turns):
        for size in ROUNDS:
            for name in arms()[:: 1 if turn % 2 else -1]:
                rounds = RAY_ROUNDS[size] if name == "ray" else ROUNDS[size]
                found[name][size].append(arm(name, size, rounds))
    return found


def rate(runs: list[Found]) -> float:
    """Return rounds a second, by the median round of all runs."""
    return 1 / float(np.median([seconds for run in runs for seconds in run["wall"]]))


def working(turns: int, rounds: int, steps: int) -> tuple[dict[str, tuple[float, list[float]]], Found]:
    """Return CPU ratios at rounds with work, each with its interval, and the losses."""
    names = ["plain", *(name for name in arms() if name != "bare_grid")]
    runs: dict[str, list[Found]] = {name: [] for name in names}
    for turn in range(turns):
        for name in names[:: 1 if turn % 2 else -1]:
            runs[name].append(arm(name, DEVICES, rounds, steps))
    cpu = {name: np.array([seconds for run in found for seconds in run["cpu"]]) for name, found in runs.items()}
    label = {"plain": "cpu_over_plain_loop", "pfl": "cpu_over_pfl", "ray": "cpu_over_ray"}
    ratios = {label[name]: harness.ratio(cpu["fedmem"], cpu[name]) for name in names if name in label}
    facts = {
        "seconds_a_device_round": float(np.median(cpu["plain"])) / DEVICES,
        "loss_over_plain_loop": runs["fedmem"][0]["loss"] / runs["plain"][0]["loss"],
    }
    return ratios, facts


def main() -> None:
    """Print the figures."""
    arguments = harness.options(__doc__ or "").parse_args()
    turns = QUICK_TURNS if arguments.quick else TURNS
    found = empty(turns)
    ratios, facts = working(turns, *(QUICK_WORK if arguments.quick else WORK))
    pretrain, spread = pretrained(arguments.quick)
    few, many = min(ROUNDS), max(ROUNDS)
    peaks = [min(run["peak_bytes"] for run in found["fedmem"][size]) for size in (few, many)]
    data: Found = {
        "rounds_per_s": {str(size): rate(runs) for size, runs in found["fedmem"].items()},
        "peers": {
            name: {"rounds_per_s": {str(size): rate(runs) for size, runs in found[name].items()}} for name in arms()[1:]
        },
        "ratio": {name: ratio for name, (ratio, _) in ratios.items()}
        | {"bytes_below_per_step": pretrain["below_per_step"]["pretrain"]},
        "work": facts,
        "first_round_s": float(np.median([run["first"] for run in found["fedmem"][few]])),
        "memory": {"slope_kb_per_device": (peaks[1] - peaks[0]) / 1e3 / (many - few)},
        "pretrain": pretrain,
        "interval": {f"ratio.{name}": interval for name, (_, interval) in ratios.items()}
        | {f"pretrain.{name}": interval for name, interval in spread.items()},
        "machine": harness.machine(),
    }
    harness.emit("federation-quick" if arguments.quick else "federation", data, arguments)
    if arguments.keep and not arguments.quick:
        plot(pretrain, Path(__file__).parents[2] / "docs" / "pretrain.svg")


if __name__ == "__main__":
    main()
