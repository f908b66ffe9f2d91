"""From runs to figures: means over paired seeds, their intervals, and how much of a gap is closed. Pure.

>>> interval([0.1, 0.2, 0.3])[0] < 0.2 < interval([0.1, 0.2, 0.3])[1]
True
>>> closed(none=4.0, memory=3.9, plain=3.8)
0.5
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fedmem.sim.seeds import confidence_interval as student

VARIANTS = ("early", "late", "flat", "flat_wide", "three_levels", "larger_anchor")
RETRIEVAL = ("short", "retrieved")
FROM_COTRAINED = ("generic", "fetched", "wrong", "prefix", "blocked")
Runs = Mapping[str, Sequence[Mapping[str, Any]]]
"""Per arm one result a seed, in the order of the seeds."""


def interval(values: Sequence[float]) -> list[float]:
    """Return the 95 % interval of the mean by Student's t. A single value is its own interval."""
    return student(values) if len(values) > 1 else [float(values[0])] * 2


def prediction(values: Sequence[float]) -> list[float]:
    """Return the 95 % interval for one more seed, by Student's t."""
    low, high = interval(values)
    middle, stretch = (low + high) / 2, math.sqrt(len(values) + 1)
    return [middle - (middle - low) * stretch, middle + (high - middle) * stretch]


def closed(none: float, memory: float, plain: float) -> float:
    """Return the share of the gap in loss between the anchor alone and the larger plain model that memory closes."""
    return (none - memory) / (none - plain)


def column(runs: Runs, arm: str, key: str) -> list[float]:
    """Return one figure of an arm, by seed."""
    return [float(found[key]) for found in runs[arm]]


def figures(runs: Runs, anchor_parameters: int) -> dict[str, Any]:
    """Return the figures of the claims with their intervals, under the names of the benchmark's output."""
    by_seed, opponent = _by_seed(runs), runs[_plain(runs)[0]]
    data = nested({name: float(np.mean(values)) for name, values in by_seed.items()})
    fetched = int(runs["cotrained"][0]["fetched_parameters"])
    runtime = anchor_parameters + fetched
    data["gap_closed"] |= {
        "runtime_ratio": int(opponent[0]["parameters"]) / runtime,
        "fetched_share": fetched / anchor_parameters,
        "break_even_multiple": break_even(data["loss"]["fetched"], _sizes(runs, anchor_parameters), runtime),
    }
    data["by_frequency"] = runs["cotrained"][0]["by_frequency"]
    data["learning_rates"] = {name: found[0]["lr"] for name, found in runs.items()}
    data["seeds"] = len(runs["none"])
    data["interval"] = {name: interval(values) for name, values in by_seed.items()}
    data["prediction"] = {name: prediction(values) for name, values in by_seed.items()}
    return data


def _plain(runs: Runs) -> list[str]:
    return [name for name in runs if name.startswith("plain-")]


def _by_seed(runs: Runs) -> dict[str, list[float]]:
    """Return every figure by seed, under its dotted name; the first plain model is the opponent."""
    none, plain = column(runs, "none", "loss"), {name: column(runs, name, "loss") for name in _plain(runs)}
    memory = {name: column(runs, name, "fetched") for name in runs if name != "none" and name not in plain}
    opponent = next(iter(plain.values()))
    return {
        "gap_closed.gap_nats": [a - b for a, b in zip(none, opponent, strict=True)],
        **{
            f"gap_closed.{arm}": [closed(*losses) for losses in zip(none, memory[arm], opponent, strict=True)]
            for arm in ("cotrained", "frozen")
        },
        "loss.none": none,
        "loss.random_clusters": memory["random_clusters"],
        **{f"loss.{key}": column(runs, "cotrained", key) for key in FROM_COTRAINED},
        **{f"loss.{name.replace('.', '_')}": values for name, values in plain.items()},
        "kinds.ffn": memory["cotrained"],
        **{f"kinds.{name}": memory[name] for name in ("lora_ffn", "lora_qk", "lora_vo", "kv")},
        **{f"variants.{name}": memory[name] for name in memory if name in VARIANTS},
        **{f"retrieval.{arm}.{key}": column(runs, arm, key) for arm in ("none", "cotrained") for key in RETRIEVAL},
        **{
            f"growth.{part}": [float(found["growth"][part - 1]) for found in runs["cotrained"]]
            for part in range(1, len(runs["cotrained"][0]["growth"]) + 1)
        },
    }


def _sizes(runs: Runs, anchor_parameters: int) -> list[tuple[int, float]]:
    """Return parameters and mean loss of the anchor alone and of every plain model, by size."""
    plain = [(int(runs[n][0]["parameters"]), float(np.mean(column(runs, n, "loss")))) for n in _plain(runs)]
    return sorted([(anchor_parameters, float(np.mean(column(runs, "none", "loss")))), *plain])


def break_even(fetched: float, sizes: Sequence[tuple[int, float]], runtime: int) -> float:
    """Return the size of the plain model with the same loss, as a multiple of anchor and fetch.

    Log-linear between measured sizes that still improve; beyond the last one, its multiple (a lower bound).
    """
    points = [sizes[0]]
    for point in sizes[1:]:
        if point[1] < points[-1][1]:
            points.append(point)
    for (small, worse), (large, better) in pairwise(points):
        if better <= fetched <= worse:
            share = (worse - fetched) / (worse - better)
            return math.exp(math.log(small) + share * (math.log(large) - math.log(small))) / runtime
    return (points[-1][0] if fetched < points[-1][1] else points[0][0]) / runtime


def nested(flat: Mapping[str, float]) -> dict[str, Any]:
    """Return dotted names as nested objects."""
    out: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        place = out
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return out
