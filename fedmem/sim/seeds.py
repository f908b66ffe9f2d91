"""Differences between settings over their seeds, or the reason why none is claimed. Pure.

Invariants
- A difference is the mean over the seeds that both settings have, each seed against itself, with Student's 95 %
  interval; a seed that was run twice counts once, and fewer than two seeds give no difference.
- Only losses of the same text in the same tokens are subtracted: what deals the text out and makes the tokenizer is
  equal in both.
- Losses are not judged: an interval that holds zero is left to speak for itself.

>>> low, high = interval([0.1, 0.2, 0.3])
>>> low < 0.2 < high
True
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from fedmem.sim.compare_runs import flat
from fedmem.sim.folder import Facts
from fedmem.sim.report_parts import at

SHARES = ("source", "documents", "heldout_share", "coordinator_share")
TEXT = (*(f"public.{key}" for key in SHARES), "anchor.vocabulary", "anchor.length")
"""What decides which text is held out and how it is cut into tokens, beside the seed: not how many devices there are.

Of the user's own text each record is drawn on its own, so there too the number of devices changes nothing of it.
"""
LEAST = 2


def interval(values: Sequence[float]) -> list[float]:
    """95 % interval of the mean by Student's t; at least two values."""
    from scipy.stats import t as student  # type: ignore[import-untyped]

    half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return [fmean(values) - half, fmean(values) + half]


def differences(rows: Sequence[Facts], configs: Sequence[Mapping[str, Any]]) -> tuple[list[Facts], list[str]]:
    """Every other setting against the first one's, and a sentence for each that nothing is claimed about.

    Args:
        rows: what is shown of each run, as `compare` makes it.
        configs: the scenario of each run.
    """
    by_setting: dict[str, dict[int, Facts]] = {}
    config_of: dict[str, Mapping[str, Any]] = {}
    for row, config in zip(rows, configs, strict=True):
        by_setting.setdefault(row["setting"], {}).setdefault(row["seed"], row)
        config_of.setdefault(row["setting"], config)
    (first, base), *others = by_setting.items()
    found, reasons = list[Facts](), list[str]()
    for setting, mine in others:
        shared = sorted(set(base) & set(mine))
        if why := _obstacle(base, mine, config_of[first], config_of[setting], shared):
            reasons.append(f"No difference between {first} and {setting} is claimed: {why}")
            continue
        private = at(config_of[first], "private") == at(config_of[setting], "private")
        found.append({"setting": setting, "against": first, "seeds": shared} | _means(base, mine, shared, private))
    return found, reasons


def _obstacle(
    base: Mapping[int, Facts],
    mine: Mapping[int, Facts],
    first: Mapping[str, Any],
    other: Mapping[str, Any],
    shared: Sequence[int],
) -> str:
    """Why the losses of two settings are not subtracted; empty where they may be."""
    if len({row["text"] for rows in (base, mine) for row in rows.values()}) > 1:
        return "they read other text."
    one, two = ({key: at(config, key) for key in TEXT} for config in (first, other))
    if unlike := [key for key, value in flat(one).items() if flat(two).get(key) != value]:
        return f"their losses are of other text or other tokens, because of {' and '.join(unlike)}."
    if len(shared) < LEAST:
        ran = "the same seed once" if shared else "no seed in common"
        return f"they have {ran}. Run both with the same seeds, three or more: `fedmem sim run SCENARIO --seed N`."
    return ""


def _means(base: Mapping[int, Facts], mine: Mapping[int, Facts], shared: Sequence[int], private: bool) -> Facts:
    loss, spread = dict[str, dict[str, float]](), dict[str, dict[str, list[float]]]()
    for part, figures in mine[shared[0]]["loss"].items():
        if part == "private" and not private:
            continue
        for name in figures:
            pairs = [(at(mine[seed], f"loss.{part}.{name}"), at(base[seed], f"loss.{part}.{name}")) for seed in shared]
            values = [one - other for one, other in pairs if one is not None and other is not None]
            if len(values) == len(shared):
                loss.setdefault(part, {})[name] = fmean(values)
                spread.setdefault(part, {})[name] = interval(values)
    return {"loss": loss, "interval": {"loss": spread}}
