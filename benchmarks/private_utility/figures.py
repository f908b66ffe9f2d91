"""From held-out losses to shares of a gain, with intervals, and their picture. Pure but for the plot.

>>> losses = {("t", 400, 0, "without"): 6.0, ("t", 400, 0, "best-0.01"): 5.0, ("t", 400, 0, "eps8"): 5.25}
>>> figures(losses, 400)["share_of_gain"]
{'eps8': 0.75}
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.claims.figures import interval

Key = tuple[str, int, int, str]
"""Topic, records, seed, arm."""


def figures(losses: Mapping[Key, float], records: int) -> dict[str, Any]:
    """Return shares of the best gain by arm: over all topics at `records`, by topic, and by number of records."""
    shares = {key: share(losses, key) for key in losses if key[3] != "without" and not key[3].startswith("best")}
    arms = list(dict.fromkeys(arm for *_, arm in shares))
    main = {arm: [v for key, v in shares.items() if key[1] == records and key[3] == arm] for arm in arms}
    return {
        "share_of_gain": {arm: float(np.mean(values)) for arm, values in main.items()},
        "interval": {f"share_of_gain.{arm}": interval(values) for arm, values in main.items()},
        "by_topic": _grouped(shares, arms, lambda key: key[0], records),
        "by_records": _grouped(shares, arms, lambda key: f"{key[0]} {key[1]}", None),
        "loss": {" ".join(map(str, key)): loss for key, loss in losses.items()},
    }


def share(losses: Mapping[Key, float], key: Key) -> float:
    """Return the share of the gain of the best block without privacy that an arm has."""
    cell = [*key[:3]]
    without = losses[(*cell, "without")]  # type: ignore[index]
    best = min(loss for other, loss in losses.items() if [*other[:3]] == cell and other[3].startswith("best"))
    return (without - losses[key]) / (without - best)


def _grouped(shares: Mapping[Key, float], arms: list[str], of: Any, records: int | None) -> dict[str, dict[str, float]]:
    chosen = {key: value for key, value in shares.items() if records in (None, key[1])}
    return {
        group: {
            arm: float(np.mean([v for key, v in chosen.items() if of(key) == group and key[3] == arm])) for arm in arms
        }
        for group in dict.fromkeys(map(of, chosen))
    }


def plot(data: Mapping[str, Any], path: Path) -> None:
    """Plot the share of the gain over the number of records, with a line for each ε."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    growing = max(data["by_records"], key=lambda name: int(name.split()[1])).split()[0]
    points = {int(name.split()[1]): row for name, row in data["by_records"].items() if name.split()[0] == growing}
    counts = sorted(points)
    for arm, label, wanted in (("eps8", "ε = 8", 0.75), ("eps2", "ε = 2", 0.5)):
        (line,) = axes.plot(counts, [points[count][arm] for count in counts], marker="o", label=label)
        axes.axhline(wanted, color=line.get_color(), linestyle=":", linewidth=1)
    # Below zero a block did harm.
    lowest = min(0.0, *(row[arm] - 0.05 for row in points.values() for arm in ("eps8", "eps2")))
    axes.set(xscale="log", xticks=counts, ylim=(lowest, 1.05))
    axes.set(xlabel=f"records ({growing})", ylabel="share of the best gain")
    axes.set_xticklabels([str(count) for count in counts])
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
