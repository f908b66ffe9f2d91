"""The utility of private blocks: `python -m benchmarks.private_utility --json [--quick] [--notes FILE] [--ablation]`.

For each topic, number of records and seed: held-out loss of the anchor alone, with the better of two blocks that were
trained without privacy, and with blocks at ε 8 and ε 2 under the default plan. The share of the gain is how much of
what the best block gains the private one does. `--notes` adds clinical notes: a JSONL file (gzip) with a field
`note`. `--ablation` changes one setting of the default at a time, on two public topics that the anchor never saw:
defaults are chosen there and nowhere else; one seed. Finished runs lie in a folder, and a broken-off benchmark goes on.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.private_utility.cells import SMALL, Arm
from benchmarks.private_utility.figures import figures, plot
from benchmarks.private_utility.runs import PUBLIC, Job, done
from fedmem.privacy.dpsgd import Optimiser

SEEDS, RECORDS = 3, 400
CURVE = (100, 200, 800, 1600)  # with one seed each: they show a course, not a figure
STEPS, QUICK_STEPS = 2000, 400
BEST = [Arm(f"best-{lr:g}", 0.0, optimiser=Optimiser(lr=lr, final=1.0)) for lr in (1e-2, 3e-2)]
PRIVATE = [Arm("eps8", 8.0), Arm("eps2", 2.0)]
ABLATION = [
    Arm("default"),
    *(Arm(f"clip-{clip:g}", plan=replace(SMALL, clip=clip)) for clip in (0.02, 1.0)),
    *(Arm(f"lr-{lr:g}", optimiser=Optimiser(lr=lr)) for lr in (1e-2, 1e-1)),
    *(Arm(f"constant-{lr:g}", optimiser=Optimiser(lr=lr, final=1.0)) for lr in (1e-2, 3e-2)),
    *(Arm(f"width-{width}", width=width) for width in (8, 32)),
    Arm("steps-160", plan=replace(SMALL, steps=160)),
    Arm("rate-0.3", plan=replace(SMALL, sampling_rate=0.3, divisor=0.3 * RECORDS)),
    Arm("average-0.5", average=0.5),
    Arm("warm", warm=True),
    Arm("warm-average", warm=True, average=0.5),
]


def main() -> None:
    """Do the missing runs and print the figures."""
    parser = harness.options(__doc__ or "")
    parser.add_argument("--notes", type=Path, help="clinical notes, JSONL in gzip")
    parser.add_argument("--ablation", action="store_true", help="change one setting of the default at a time")
    arguments = parser.parse_args()
    steps, seeds = (QUICK_STEPS, 1) if arguments.quick else (STEPS, SEEDS)
    shared = harness.kept("x").parent / "private_utility" / str(steps), steps, arguments.notes
    if arguments.ablation:
        arms = [None, *BEST, *ABLATION]
        jobs = [Job(*shared, topic, RECORDS, 0, arm) for topic in PUBLIC for arm in arms]
        name = "private_ablation"
    else:
        topics = ["finance"] if arguments.quick else ["health", "finance", "notes"]
        asked = [(topic, RECORDS) for topic in topics] + ([("clinical", RECORDS)] if arguments.notes else [])
        growing = "clinical" if arguments.notes else "finance"
        asked += [] if arguments.quick else [(growing, count) for count in CURVE]
        runs = [(*one, s) for one in asked for s in range(seeds if one[1] == RECORDS else 1)]
        jobs = [Job(*shared, *run, arm) for run in runs for arm in [None, *BEST, *PRIVATE]]
        name = "private_utility"
    found = {(j.topic, j.records, j.seed, j.arm.name if j.arm else "without"): j.loss() for j in done(jobs)}
    data: dict[str, Any] = figures(found, RECORDS) | {"machine": harness.machine()}
    if arguments.keep and not arguments.ablation:
        plot(data, Path(__file__).parents[2] / "docs" / "privacy-utility.svg")
    harness.emit(name, data, arguments)


if __name__ == "__main__":
    main()
