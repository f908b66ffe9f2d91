"""What two or more finished runs have in common, where they differ, and what each of them gave.

Invariants
- A pure function of what `run.json` of each run holds; it writes nothing.
- Of a run on the user's own text no figure of private text is shown, whatever the file holds (docs/design.md, §7).
- Runs that differ in their seed only are one setting. A difference is given between settings, with a 95 % interval over
  the seeds that both have, and only for losses of the same text in the same tokens; else none is claimed, and why.
- A run that is unfinished, unknown, named twice or of another format is refused: nothing is compared in part.

    data = compare(["pretrain-0001", "pretrain-0002"])
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from fedmem.errors import UsageError
from fedmem.federation.rounds import local_steps
from fedmem.sim.compare_runs import NUMBER, finished, flat, is_a
from fedmem.sim.folder import Facts
from fedmem.sim.report_parts import at
from fedmem.sim.seeds import differences
from fedmem.storage.canonical import canonical_json

MOST = 16
"""Settings that one picture can tell apart."""
NAMES = ("name", "about", "seed")  # of a scenario: they change nothing that is computed; a run has a seed of its own
LOSSES = ("public", "rounds", "private")
EPSILONS = ("device", "device_delta", "device_reason", "coordinator", "coordinator_reason", "blocks_max")


def compare(names: Sequence[str]) -> Facts:
    """The comparison of the runs called `names`, in their order; the first one's setting is what others are held to.

    Raises UsageError (fewer than two runs, one named twice, an unfinished one, too many settings), NothingMatched (an
    unknown one), VersionMismatch (one of another format) and VerificationFailed (a damaged file).
    """
    if len(names) < 2:
        raise UsageError("A comparison needs two runs; `fedmem sim list` shows them.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"The run {twice[0]} is named twice; name each run once.")
    found = finished(names)
    rows = [_row(run, letter) for run, letter in zip(found, _settings(found), strict=True)]
    compared, left_out = differences(rows, [run["config"] for run in found])
    return {
        "runs": rows,
        "differs": _differing(rows, [_config(run) for run in found]),
        "differences": compared,
        "notes": [*left_out, *_digests(rows)],
        "attribution": list(dict.fromkeys(line for run in found for line in run.get("attribution") or [])),
    }


def _settings(found: Sequence[Facts]) -> list[str]:
    """A letter per run: the same for runs of one configuration and one text."""
    keys = [canonical_json([_config(run), run["text"]]) for run in found]
    distinct = list(dict.fromkeys(keys))
    if len(distinct) > MOST:
        raise UsageError(f"These runs have {len(distinct)} settings; compare at most {MOST} at once.")
    return [chr(ord("A") + distinct.index(key)) for key in keys]


def _config(run: Facts) -> Facts:
    return {key: value for key, value in run["config"].items() if key not in NAMES}


def _row(run: Facts, setting: str) -> Facts:
    """What is shown of one run."""
    rounds, devices = run["bytes"]["rounds"], max(1, at(run, "config.public.devices"))
    up, down = (sum(one[way] for one in rounds) / devices for way in ("up", "down"))
    return {
        "name": run["name"],
        "setting": setting,
        "scenario": run["scenario"],
        "seed": run["seed"],
        "text": run["text"],
        "devices": at(run, "config.public.devices"),
        "rounds": len(rounds),
        "parameters": run.get("parameters"),
        "loss": {part: _numbers(at(run, f"loss.{part}")) for part in LOSSES if _open(run, part)},
        "curve": _curve(run),
        "epsilon": {key: at(run, f"epsilon.{key}") for key in EPSILONS},
        "bytes": {"per_device_round": run["bytes"]["per_device_round"], "per_device_up": up, "per_device_down": down},
        "digest": run["digest"],
        "peak_rss_mb": run.get("peak_rss_mb"),
        "seconds": at(run, "seconds.total"),
    }


def _open(run: Facts, part: str) -> bool:
    """Whether losses of this part may be shown: private ones of generated text only."""
    return part != "private" or run["text"] == "generated"


def _numbers(part: Any) -> dict[str, float]:
    known = part if isinstance(part, Mapping) else {}
    return {key: float(value) for key, value in known.items() if is_a(value, NUMBER)}


def _curve(run: Facts) -> list[Facts]:
    """The points on held-out public text, each with the tokens that were trained on before it, all devices together.

    A token counts as often as it stands in a batch, padding included: steps × batch × length. The rounds count on, over
    all releases; the expected size of a cohort counts. A phase that the scenario gives no steps is left out.
    """
    before, points = 0.0, list[Facts]()
    for phase in dict.fromkeys(point["phase"] for point in run["loss"]["by_phase"]):
        federated = phase.startswith("rounds_")
        terms = at(run["config"], "federation" if federated else phase)
        needed = ("steps", "batch", "sampling_rate") if federated else ("steps", "batch")
        if not all(is_a(at(terms, key), NUMBER) for key in needed):
            continue
        each = terms["batch"] * at(run, "config.anchor.length")
        if federated:
            each *= terms.get("cohort_size") or terms["sampling_rate"] * at(run, "config.public.devices")
        for point in run["loss"]["by_phase"]:
            if (point["phase"], point["split"]) == (phase, "heldout"):
                tokens = before + (_local_steps(terms, point["step"]) if federated else point["step"]) * each
                closed = point["step"] if federated else None
                points.append({"phase": phase, "tokens": tokens, "round": closed, "loss": point["loss"]})
        before += 0 if federated else terms["steps"] * each
    return points


def _local_steps(terms: Facts, rounds: int) -> int:
    """Of a device that takes part in all of the first `rounds`; older runs know no first_steps."""
    return sum(local_steps(number, terms["steps"], terms.get("first_steps", 0)) for number in range(1, rounds + 1))


def _differing(rows: Sequence[Facts], configs: Sequence[Facts]) -> dict[str, dict[str, Any]]:
    """What the runs were told differently: dotted name of the scenario's key, then the value of each run."""
    told = [
        {key: row[key] for key in ("scenario", "seed", "text")} | flat(config)
        for row, config in zip(rows, configs, strict=True)
    ]
    keys = dict.fromkeys(key for one in told for key in one)
    return {
        key: {row["name"]: one.get(key) for row, one in zip(rows, told, strict=True)}
        for key in keys
        if any(one.get(key) != told[0].get(key) for one in told)
    }


def _digests(rows: Sequence[Facts]) -> list[str]:
    """What equal and unequal digests say (I9)."""
    said = []
    for one, other in combinations(rows, 2):
        names, alike = f"{one['name']} and {other['name']}", one["digest"] == other["digest"]
        repeated = (one["setting"], one["seed"]) == (other["setting"], other["seed"])
        if alike:
            said.append(f"{names} have equal digests: anchor, bank, ledger and messages are the same to the last bit.")
        elif repeated and one["text"] == "generated":
            said.append(f"{names} were told the same and have other digests: other versions or machines made them.")
    return said
