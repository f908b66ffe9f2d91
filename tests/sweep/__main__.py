"""The crash sweep: `python -m tests.sweep`, or `make sweep`, prints how many points it tried and how many were bad.

A point is one cut, kill or failure at one place of one operation on a vault; it is bad unless the vault that is left is
the old one or the new one. Every single cut, kill and failure is tried first, in an order that is the same each time;
then pairs of them are drawn until there are as many points as were asked for. Name points to try those alone.
"""

import argparse
import gc
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from tests.sweep import cuts, faults, kills, tracer
from tests.sweep.operations import OPERATIONS, Place, Point, examine

SHOWN = 20
TRIED: list[Point] = []
"""What a worker finds by number: points are closures, and a forked worker has them already."""


def single(place: Place, scratch: Path, missing: str) -> list[Point]:
    """Every single cut, failure and kill; no real process where tracing is `missing`."""
    known = [*cuts.points(place, scratch), *faults.points(place, scratch)]
    return known if missing else [*known, *kills.points(place, scratch)]


def gathered(place: Place, scratch: Path, count: int, missing: str) -> list[Point]:
    """`count` points: single ones in an order that is the same each time, then pairs."""
    known = single(place, scratch, missing)
    Random(0).shuffle(known)
    if not missing and count > len(known):
        known += itertools.islice(kills.pairs(place, scratch), count - len(known))
    return known[:count]


def named(place: Place, scratch: Path, names: list[str], missing: str) -> list[Point]:
    """The points of these names. Raises KeyError where there is none."""
    known = dict(single(place, scratch, missing))
    return [kills.pair(place, name) if name.split("/")[0] in kills.PAIRS else (name, known[name]) for name in names]


def swept(folder: Path, count: int, workers: int, names: list[str]) -> dict[str, Any]:
    """Try the points; the figures."""
    start = time.monotonic()
    place, missing = Place.build(folder / "template"), tracer.works()
    # Warm what is loaded at the first use, here and not in every child.
    examine(place.copy(folder / "s"), (), (place.before,))
    TRIED[:] = named(place, folder / "s", names, missing) if names else gathered(place, folder / "s", count, missing)
    gc.freeze()  # a child that collects garbage copies every page
    with multiprocessing.get_context("fork").Pool(workers, _own_scratch, (folder,)) as pool:
        found = list(pool.imap_unordered(_try, range(len(TRIED))))
    failures = sorted(f"{name}: {problem}" for name, problem in found if problem)
    kinds = Counter(name.split("/")[0] for name, _ in found)
    by = Counter(name.split("/")[1] for name, _ in found)
    return {
        "points": len(found),
        "bad": len(failures),
        "kinds": dict(sorted(kinds.items())),
        "operations": {name: by[name] for name in OPERATIONS},
        "failures": failures[:SHOWN],
        "no_processes_because": missing,
        "seconds": round(time.monotonic() - start, 1),
    }


def _own_scratch(folder: Path) -> None:
    global _scratch
    _scratch = folder / f"worker-{os.getpid()}"


def _try(number: int) -> tuple[str, str]:
    name, run = TRIED[number]
    try:
        return name, run(_scratch)
    except Exception as error:  # noqa: BLE001 -- whatever it is, the point is bad
        return name, f"{type(error).__name__}: {error}"


def memory() -> str | None:
    """A folder in memory, where there is one: a sync costs nothing there."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def main() -> None:
    """Print one envelope; exit 12 where a point is bad."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="try these points alone, as kill/add/3-pwrite64")
    parser.add_argument("--points", type=int, default=5000, help="how many points to try")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that try them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedmem-sweep-", dir=memory()) as folder:
        data = swept(Path(folder), arguments.points, arguments.workers, arguments.names)
    print(json.dumps({"schema": "fedmem.sweep/1", "data": data}))
    if data["bad"]:
        raise SystemExit(12)


if __name__ == "__main__":
    main()
