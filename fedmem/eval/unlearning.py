"""Is what was erased forgotten? A topic's block before its erasure, after it, and a vault that never held it.

Pairs of some invented authors are learned as the topic `forget`, those of others as `retain`. The vault is measured,
`forget` is erased, the vault is opened again and measured, and beside it one that only ever held `retain`.

Invariants
- A text fetches by the ordinary path: the shared blocks of its prompt, and its topic's private block if there is one.
  Blocks are trained one by one and disturb each other when all are in use; memorisation would look smaller than it is.
- `equal_logits` compares the logits of every record bit for bit, by the ordinary path and with all blocks of the vault
  in use: after the erasure against never held (I4). `control_differs` says that before the erasure they differed.
- A figure is a mean over texts or a test on them; no text and no figure of one text is in the result.
- The result is a function of (release, facts, plan, public), seconds aside.

    measure_unlearning(Release.load(folder), StaticEmbedder(), tofu.load(path), UnlearnPlan())

What is measured is in `fedmem.eval.arms`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from fedmem.errors import UsageError
from fedmem.eval.arms import FORGET, RETAIN, Arm, Sets, measure
from fedmem.eval.canaries import MOST, plant
from fedmem.eval.membership import privleak
from fedmem.eval.reader import Reader
from fedmem.eval.throwaway import Learning, Throwaway, throwaway
from fedmem.eval.truth import Pair, forget_quality
from fedmem.routing.embedder import Embedder
from fedmem.training.release import Release

Progress = Callable[[str, int, int, str], None]
"""`(phase, done, total, note)`; a note holds nothing of a text."""

METRICS = (
    *("extraction_strength", "verbmem", "knowmem", "probability", "exposure", "mia_auc", "privleak", "truth_ratio"),
    *("forget_quality", "retain_knowmem", "model_utility", "retain_loss", "public_loss"),
)
BEFORE, AFTER, NEVER = "before", "after", "never"
REASON = "invented text in a vault that is thrown away; noise would hide what an erasure has to remove"


@dataclass(frozen=True)
class UnlearnPlan:
    """What is measured: `authors` of each set (forget, retain, held out), and how well the blocks learn them.

    TOFU's smallest forget set is 2 of 200 authors. `canaries` with a code of `digits` digits are planted in `forget`.
    """

    authors: int = 2
    steps: int = 150
    width: int = 128
    length: int = 256
    canaries: int = 4
    digits: int = 3
    seed: int = 7

    def __post_init__(self) -> None:
        sizes = (self.authors, self.steps, self.width, self.canaries, self.digits)
        if min(sizes) < 1 or self.length < 16 or self.canaries > MOST or self.digits > 4:
            raise UsageError(
                "An unlearning plan has one or more authors, steps, columns and canaries, 16 tokens or more, at most "
                f"{MOST} canaries and at most 4 digits."
            )


def choose(facts: Mapping[str, Sequence[Pair]], plan: UnlearnPlan) -> Sets:
    """Authors for the three sets, drawn by the plan's seed. Raises UsageError where there are too few."""
    needed = 3 * plan.authors
    if len(facts) < needed:
        raise UsageError(
            f"The facts have {len(facts)} authors, and {needed} are needed: {plan.authors} to forget, as many to "
            "retain, as many to hold out. Take fewer authors, or give more facts."
        )
    names = sorted(facts)
    drawn = np.random.default_rng([plan.seed, 0x41555448]).permutation(len(names))[:needed]
    forget, retain, holdout = ([pair for n in sorted(part) for pair in facts[names[n]]] for part in np.split(drawn, 3))
    return Sets(forget, retain, holdout, plant(plan.canaries, plan.digits, plan.seed), plan.seed)


def measure_unlearning(
    release: Release,
    embedder: Embedder,
    facts: Mapping[str, Sequence[Pair]],
    plan: UnlearnPlan,
    public: Sequence[str] = (),
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Learn, measure, erase, measure, and measure what never saw it; gives what the command's envelope holds.

    `public` is held-out text of the release. Raises UsageError for too few authors, and what vault, learner and
    erasure raise.
    """
    torch.set_num_threads(1)  # how a sum is split among several was seen to change under load (I9)
    start, sets, reader = time.monotonic(), choose(facts, plan), Reader(release, embedder, plan.length)
    learning, arms = Learning(plan.steps, plan.width, reader.length), dict[str, Arm]()

    def learn(held: Throwaway, topic: str, before: int) -> None:
        tell: Callable[[int], None] = lambda step: progress("learn", before + step, 3 * plan.steps, "")  # noqa: E731
        held.learn(topic, sets.texts(topic), learning, tell)

    def look(held: Throwaway, name: str) -> None:
        progress("measure", len(arms), 3, name)
        arms[name] = measure(reader, sets, held.sources((FORGET, RETAIN)), public)

    with throwaway(release, embedder) as held:
        learn(held, FORGET, 0)
        learn(held, RETAIN, plan.steps)
        look(held, BEFORE)
        verified = held.erase(FORGET)
        look(held, AFTER)
    with throwaway(release, embedder) as other:
        learn(other, RETAIN, 2 * plan.steps)
        look(other, NEVER)
    progress("measure", 3, 3, "")
    return _told(release, plan, sets, arms) | {"verified": verified, "seconds": round(time.monotonic() - start, 1)}


def _told(release: Release, plan: UnlearnPlan, sets: Sets, arms: Mapping[str, Arm]) -> dict[str, Any]:
    """The result: a row for each metric, and whether the logits are equal."""
    never, figures = arms[NEVER], {name: dict(arm.figures) for name, arm in arms.items()}
    for name, arm in arms.items():
        figures[name]["privleak"] = privleak(arm.auc, never.auc)
        figures[name]["forget_quality"] = forget_quality(arm.ratio_N, never.ratio_N)
    return {
        "release": release.digest,
        "plan": asdict(plan),
        "records": {FORGET: len(sets.texts(FORGET)), RETAIN: len(sets.texts(RETAIN)), "holdout": len(sets.holdout)},
        "metrics": {metric: {name: figures[name][metric] for name in arms} for metric in METRICS},
        "equal_logits": arms[AFTER].digests == never.digests,
        "control_differs": arms[BEFORE].digests != never.digests,
        "epsilon": None,
        "unsafe_no_dp": True,
        "unsafe_reason": REASON,
    }
