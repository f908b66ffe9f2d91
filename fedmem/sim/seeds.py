"""Compute differences between settings over their seeds, or give the reason why there is none. Pure.

Invariants
- A difference is a mean over the seeds that both settings have. Each seed is compared with itself, with Student's 95 %
  interval. A seed that was run twice counts once. Fewer than two common seeds give no difference.
- Losses are subtracted only where text and tokens are the same. So all settings that divide the text or make the
  tokenizer must be equal.
- No difference is called significant. Readers see the interval and whether it contains zero.

>>> low, high = confidence_interval([0.1, 0.2, 0.3])
>>> low < 0.2 < high
True
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from fedmem.sim.compare_runs import flatten
from fedmem.sim.folder import Facts
from fedmem.sim.report_parts import value_at

SHARES = ("source", "documents", "heldout_share", "coordinator_share")
TEXT = (*(f"public.{key}" for key in SHARES), "anchor.vocabulary", "anchor.length")
"""Settings that, with the seed, decide which text is held out and how it is tokenised.

The number of devices is not among them. It changes nothing of the user's own text either, since each record of it is
drawn on its own.
"""
LEAST_SEEDS = 2


def confidence_interval(values: Sequence[float]) -> list[float]:
    """Return the 95 % interval of the mean, by Student's t.

    Args:
        values: at least two values.

    Returns:
        The lower and the upper end.
    """
    from scipy.stats import t as student  # type: ignore[import-untyped]

    half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return [fmean(values) - half, fmean(values) + half]


def compare_settings(rows: Sequence[Facts], configs: Sequence[Mapping[str, Any]]) -> tuple[list[Facts], list[str]]:
    """Compare every other setting with the first one.

    Args:
        rows: the figures of each run, as `compare` makes them.
        configs: the scenario of each run, in the same order.

    Returns:
        The differences, and a sentence for each setting that cannot be compared.
    """
    by_setting: dict[str, dict[int, Facts]] = {}
    config_of: dict[str, Mapping[str, Any]] = {}
    for row, config in zip(rows, configs, strict=True):
        by_setting.setdefault(row["setting"], {}).setdefault(row["seed"], row)
        config_of.setdefault(row["setting"], config)
    (base_setting, base), *other_settings = by_setting.items()
    results, reasons = list[Facts](), list[str]()
    for setting, other in other_settings:
        common_seeds = sorted(set(base) & set(other))
        if reason := _obstacle(base, other, config_of[base_setting], config_of[setting], common_seeds):
            reasons.append(f"No difference between {base_setting} and {setting} is claimed: {reason}")
            continue
        private = value_at(config_of[base_setting], "private") == value_at(config_of[setting], "private")
        results.append(
            {"setting": setting, "against": base_setting, "seeds": common_seeds}
            | _means(base, other, common_seeds, private)
        )
    return results, reasons


def _obstacle(
    base: Mapping[int, Facts],
    other: Mapping[int, Facts],
    base_config: Mapping[str, Any],
    other_config: Mapping[str, Any],
    common_seeds: Sequence[int],
) -> str:
    """Return the reason why the losses of two settings cannot be subtracted; empty if they can."""
    if len({row["text"] for rows in (base, other) for row in rows.values()}) > 1:
        return "they read other text."
    first_text, second_text = ({key: value_at(config, key) for key in TEXT} for config in (base_config, other_config))
    if different_keys := [key for key, value in flatten(first_text).items() if flatten(second_text).get(key) != value]:
        return f"their losses are of other text or other tokens, because of {' and '.join(different_keys)}."
    if len(common_seeds) < LEAST_SEEDS:
        overlap = "the same seed once" if common_seeds else "no seed in common"
        return f"they have {overlap}. Run both with the same seeds, three or more: `fedmem sim run SCENARIO --seed N`."
    return ""


def _means(base: Mapping[int, Facts], other: Mapping[int, Facts], common_seeds: Sequence[int], private: bool) -> Facts:
    loss, spread = dict[str, dict[str, float]](), dict[str, dict[str, list[float]]]()
    for part, figures in other[common_seeds[0]]["loss"].items():
        if part == "private" and not private:
            continue
        for name in figures:
            pairs = [
                (value_at(other[seed], f"loss.{part}.{name}"), value_at(base[seed], f"loss.{part}.{name}"))
                for seed in common_seeds
            ]
            values = [value - base_value for value, base_value in pairs if value is not None and base_value is not None]
            if len(values) == len(common_seeds):
                loss.setdefault(part, {})[name] = fmean(values)
                spread.setdefault(part, {})[name] = confidence_interval(values)
    return {"loss": loss, "interval": {"loss": spread}}
