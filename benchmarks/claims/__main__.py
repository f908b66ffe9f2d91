"""The paper's claims in miniature: `python -m benchmarks.claims --json [--quick] [--folder F]`.

The full ladder takes hours and goes on where it was broken off; its last results stand in
benchmarks/results/claims.json. `--quick` is one seed of a smaller ladder with the same keys, and says whether the
kept intervals contain what it found."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.claims.figures import figures
from benchmarks.claims.ladder import FULL, QUICK, Ladder, arms
from fedmem.anchor.presets import new_anchor

RESULTS = Path(__file__).parents[1] / "results" / "claims.json"


def main() -> None:
    """Run what is missing and print the figures."""
    parser = harness.options(__doc__ or "")
    parser.add_argument("--folder", type=Path, default=Path("claims-runs"), help="where finished runs are kept")
    parser.add_argument("--seeds", type=int, default=None, help="paired seeds; default 3, quick 1")
    parser.add_argument("--keep", action="store_true", help="write the figures to benchmarks/results/")
    arguments = parser.parse_args()
    scale = QUICK if arguments.quick else FULL
    seeds = arguments.seeds or (1 if arguments.quick else 3)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        ladder = Ladder(scale, arguments.folder / scale.name, seeds, pool, harness.progress)
        runs = ladder.results(arms(arguments.quick))
    anchor = sum(p.numel() for p in new_anchor("nano", scale.vocabulary, 0).parameters())
    data = figures(runs, anchor) | {"scale": vars(scale), "machine": harness.machine()}
    if arguments.keep:
        keep(scale.name, data)
    harness.emit("claims", data | {"kept": within(scale.name, data)}, arguments.json)


def keep(scale: str, data: dict[str, Any]) -> None:
    """Write the figures of a scale beside those of the other."""
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(kept | {scale: data}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def within(scale: str, data: dict[str, Any]) -> dict[str, bool]:
    """For each figure whether the kept interval of this scale, for one more seed, contains it."""
    kept = json.loads(RESULTS.read_text(encoding="utf-8")).get(scale, {}) if RESULTS.exists() else {}
    found = dict(harness.flat({key: data[key] for key in ("gap_closed", "loss", "kinds")}))
    inside = {name: kept["prediction"][name] for name in found if name in kept.get("prediction", {})}
    return {name: low <= found[name] <= high for name, (low, high) in inside.items()}


if __name__ == "__main__":
    main()
