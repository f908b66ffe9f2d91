"""Compare two or more finished runs: their settings, where these differ, and their results.

Invariants
- A comparison is a pure function of the `run.json` of each run. It writes nothing.
- Of a run on the user's own text no figure of private text is shown, even if the file holds one (docs/design.md, §7).
- Runs that differ in their seed only are one setting.
- A difference is given between settings, with a 95 % interval over the seeds that both have. It is given only for
  losses of the same text in the same tokens. Otherwise the reason stands instead.
- A run that is unfinished, unknown, named twice or of another format is refused. There is no partial comparison.

    data = compare(["pretrain-0001", "pretrain-0002"])
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from fedmem.errors import UsageError
from fedmem.federation.rounds import local_steps
from fedmem.sim.compare_runs import NUMBER, flatten, has_type, load_finished
from fedmem.sim.folder import Facts
from fedmem.sim.report_parts import value_at
from fedmem.sim.seeds import compare_settings
from fedmem.storage.canonical import canonical_json

MOST_SETTINGS = 16
"""The greatest number of settings that one picture can tell apart."""
NAMES = ("name", "about", "seed")  # keys of a scenario that change no result; a run has its own seed
LOSSES = ("public", "rounds", "private")
EPSILONS = ("device", "device_delta", "device_reason", "coordinator", "coordinator_reason", "blocks_max")


def compare(names: Sequence[str]) -> Facts:
    """Compare runs.

    Args:
        names: the names of two or more runs; the other settings are compared with the setting of the first one.

    Returns:
        The figures of each run, the settings that differ, the differences between settings, notes and attributions.

    Raises:
        UsageError: there are fewer than two runs, too many settings, or a run is named twice or unfinished.
        NothingMatched: a run is unknown.
        VersionMismatch: a run has another format.
        VerificationFailed: a file is damaged.
    """
    if len(names) < 2:
        raise UsageError("A comparison needs two runs; `fedmem sim list` shows them.")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"The run {repeated[0]} is named twice; name each run once.")
    all_runs = load_finished(names)
    rows = [_figures(run, letter) for run, letter in zip(all_runs, _settings(all_runs), strict=True)]
    results, reasons = compare_settings(rows, [run["config"] for run in all_runs])
    return {
        "runs": rows,
        "differs": _differing_settings(rows, [_config(run) for run in all_runs]),
        "differences": results,
        "notes": [*reasons, *_digest_notes(rows)],
        "attribution": list(dict.fromkeys(line for run in all_runs for line in run.get("attribution") or [])),
    }


def _settings(all_runs: Sequence[Facts]) -> list[str]:
    """Return a letter for each run; runs with equal configuration and equal text have the same letter."""
    keys = [canonical_json([_config(run), run["text"]]) for run in all_runs]
    distinct = list(dict.fromkeys(keys))
    if len(distinct) > MOST_SETTINGS:
        raise UsageError(f"These runs have {len(distinct)} settings; compare at most {MOST_SETTINGS} at once.")
    return [chr(ord("A") + distinct.index(key)) for key in keys]


def _config(run: Facts) -> Facts:
    return {key: value for key, value in run["config"].items() if key not in NAMES}


def _figures(run: Facts, setting: str) -> Facts:
    """Return the figures of one run that are shown."""
    rounds, devices = run["bytes"]["rounds"], max(1, value_at(run, "config.public.devices"))
    up, down = (sum(round_traffic[direction] for round_traffic in rounds) / devices for direction in ("up", "down"))
    return {
        "name": run["name"],
        "setting": setting,
        "scenario": run["scenario"],
        "seed": run["seed"],
        "text": run["text"],
        "devices": value_at(run, "config.public.devices"),
        "rounds": len(rounds),
        "parameters": run.get("parameters"),
        "loss": {part: _numbers(value_at(run, f"loss.{part}")) for part in LOSSES if _may_show(run, part)},
        "curve": _curve(run),
        "epsilon": {key: value_at(run, f"epsilon.{key}") for key in EPSILONS},
        "bytes": {"per_device_round": run["bytes"]["per_device_round"], "per_device_up": up, "per_device_down": down},
        "digest": run["digest"],
        "peak_rss_mb": run.get("peak_rss_mb"),
        "seconds": value_at(run, "seconds.total"),
    }


def _may_show(run: Facts, part: str) -> bool:
    """Return True if losses of this part may be shown; private ones only of generated text."""
    return part != "private" or run["text"] == "generated"


def _numbers(part: Any) -> dict[str, float]:
    figures = part if isinstance(part, Mapping) else {}
    return {key: float(value) for key, value in figures.items() if has_type(value, NUMBER)}


def _curve(run: Facts) -> list[Facts]:
    """Return the points on held-out public text, each with the number of tokens trained before it.

    Tokens of all devices count together. A token counts as often as it is in a batch, padding included: steps × batch ×
    length. Rounds are numbered through all releases, and the expected size of a cohort counts. A phase without steps in
    the scenario is left out.
    """
    tokens_before, points = 0.0, list[Facts]()
    for phase in dict.fromkeys(point["phase"] for point in run["loss"]["by_phase"]):
        federated = phase.startswith("rounds_")
        terms = value_at(run["config"], "federation" if federated else phase)
        needed_keys = ("steps", "batch", "sampling_rate") if federated else ("steps", "batch")
        if not all(has_type(value_at(terms, key), NUMBER) for key in needed_keys):
            continue
        tokens_per_step = terms["batch"] * value_at(run, "config.anchor.length")
        if federated:
            tokens_per_step *= terms.get("cohort_size") or terms["sampling_rate"] * value_at(
                run, "config.public.devices"
            )
        for point in run["loss"]["by_phase"]:
            if (point["phase"], point["split"]) == (phase, "heldout"):
                tokens = (
                    tokens_before
                    + (_local_steps(terms, point["step"]) if federated else point["step"]) * tokens_per_step
                )
                closed_rounds = point["step"] if federated else None
                points.append({"phase": phase, "tokens": tokens, "round": closed_rounds, "loss": point["loss"]})
        tokens_before += 0 if federated else terms["steps"] * tokens_per_step
    return points


def _local_steps(terms: Facts, rounds: int) -> int:
    """Return the local steps of a device that takes part in all of the first `rounds`.

    Older runs have no `first_steps`.
    """
    return sum(local_steps(number, terms["steps"], terms.get("first_steps", 0)) for number in range(1, rounds + 1))


def _differing_settings(rows: Sequence[Facts], configs: Sequence[Facts]) -> dict[str, dict[str, Any]]:
    """Return the settings that differ: dotted name of the scenario's key, then the value of each run."""
    settings = [
        {key: row[key] for key in ("scenario", "seed", "text")} | flatten(config)
        for row, config in zip(rows, configs, strict=True)
    ]
    keys = dict.fromkeys(key for values in settings for key in values)
    return {
        key: {row["name"]: values.get(key) for row, values in zip(rows, settings, strict=True)}
        for key in keys
        if any(values.get(key) != settings[0].get(key) for values in settings)
    }


def _digest_notes(rows: Sequence[Facts]) -> list[str]:
    """Return sentences about equal and unequal digests (I9)."""
    sentences = []
    for first, second in combinations(rows, 2):
        names, are_equal = f"{first['name']} and {second['name']}", first["digest"] == second["digest"]
        is_repetition = (first["setting"], first["seed"]) == (second["setting"], second["seed"])
        if are_equal:
            sentences.append(
                f"{names} have equal digests: anchor, bank, ledger and messages are the same to the last bit."
            )
        elif is_repetition and first["text"] == "generated":
            sentences.append(
                f"{names} have the same inputs but different digests: other versions or machines made them."
            )
    return sentences
