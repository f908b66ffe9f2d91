"""The paper's claims in miniature: `python -m benchmarks.claims --json [--quick] [--folder F]`.

The full ladder takes hours and goes on where it was broken off; its last results stand in
benchmarks/results/claims.json. `--quick` is one seed of a smaller ladder with the same keys, and says whether the
kept intervals contain what it found."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.claims.figures import figures
from benchmarks.claims.ladder import FULL, QUICK, Ladder, arms
from fedmem.anchor.presets import new_anchor


def main() -> None:
    """Do the missing runs and print the figures."""
    parser = harness.options(__doc__ or "")
    parser.add_argument(
        "--folder", type=Path, default=harness.kept("claims").parent / "claims", help="where finished runs lie"
    )
    parser.add_argument("--seeds", type=int, default=None, help="paired seeds; default 3, quick 1")
    arguments = parser.parse_args()
    scale = QUICK if arguments.quick else FULL
    seeds = arguments.seeds or (1 if arguments.quick else 3)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        ladder = Ladder(scale, arguments.folder / scale.name, seeds, pool, harness.progress)
        runs = ladder.results(arms(arguments.quick))
    anchor = sum(p.numel() for p in new_anchor("nano", scale.vocabulary, 0).parameters())
    data = figures(runs, anchor) | {"scale": asdict(scale), "machine": harness.machine()}
    name = "claims" if scale is FULL else "claims-quick"
    harness.emit(name, data | {"kept": within(name, data)}, arguments)


def within(name: str, data: dict[str, Any]) -> dict[str, bool]:
    """Return, for each figure, True if the kept interval for one more seed contains it."""
    path = harness.kept(name)
    kept = json.loads(path.read_text(encoding="utf-8"))["prediction"] if path.exists() else {}
    found = dict(harness.flat({key: data[key] for key in ("gap_closed", "loss", "kinds")}))
    inside = {key: kept[key] for key in found if key in kept}
    return {key: low <= found[key] <= high for key, (low, high) in inside.items()}


if __name__ == "__main__":
    main()
