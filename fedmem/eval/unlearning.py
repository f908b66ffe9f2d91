"""Measure unlearning: compare a topic's block before and after its erasure with a vault that never held the topic.

A vault learns pairs of some invented authors as the topic `forget`, and those of others as `retain`. It is measured,
`forget` is erased, and the vault is opened again and measured. A second vault, which only ever held `retain`, is
measured too. `fedmem.eval.arms` defines the figures.

Invariants
- A text uses the shared blocks of its prompt, and the private block of its topic if there is one. Blocks are trained
  separately and disturb each other when all are in use, so memorisation would look smaller than it is.
- `equal_logits` is True if, after the erasure, the logits of every record equal those of the vault that never held the
  topic, bit for bit (I4). It compares them with the topic's block and with all blocks of the vault in use.
  `control_differs` is True if they differed before the erasure.
- A figure is a mean over texts or a test on them. The result holds no text and no figure of a single text.
- The result is a function of (release, facts, plan, public), except for the seconds.

    measure_unlearning(Release.load(folder), StaticEmbedder(), tofu.load(path), UnlearnPlan())
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from fedmem.errors import UsageError
from fedmem.eval.arms import FORGET, RETAIN, Arm, Sets, measure_figures
from fedmem.eval.canaries import MOST, plant
from fedmem.eval.membership import privleak
from fedmem.eval.reader import Reader
from fedmem.eval.throwaway import Learning, ThrowawayVault, throwaway_vault
from fedmem.eval.truth import Pair, forget_quality
from fedmem.routing.embedder import Embedder
from fedmem.training.release import Release

Progress = Callable[[str, int, int, str], None]
"""A function that is called with (phase, done, total, note); a note holds no part of a text."""

METRICS = (
    *("extraction_strength", "verbmem", "knowmem", "probability", "exposure", "mia_auc", "privleak", "truth_ratio"),
    *("forget_quality", "retain_knowmem", "model_utility", "retain_loss", "public_loss"),
)
BEFORE, AFTER, NEVER = "before", "after", "never"
REASON = "invented text in a vault that is thrown away; noise would hide what an erasure has to remove"


@dataclass(frozen=True)
class UnlearnPlan:
    """The settings of a measurement.

    Attributes:
        authors: number of authors in each set (forget, retain, held out), from 1; TOFU's smallest forget set is 2 of
            200 authors.
        steps: steps of a training, from 1.
        width: rows of a block in each layer, from 1.
        length: most tokens of a text, from 16.
        canaries: number of sentences with a random code in `forget`, from 1 to `canaries.MOST`.
        digits: digits of a code, 1 to 4.
        seed: decides authors, canaries and perturbed answers.

    Raises:
        UsageError: a value is out of its range.
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


def choose_sets(facts: Mapping[str, Sequence[Pair]], plan: UnlearnPlan) -> Sets:
    """Draw the authors of the three sets with the plan's seed.

    Args:
        facts: the pairs of each author.
        plan: the settings.

    Raises:
        UsageError: there are fewer than three times `plan.authors` authors.
    """
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
    """Learn, measure, erase, measure again, and measure a vault that never held the erased topic.

    Args:
        release: anchor, tokenizer, tree and bank.
        embedder: that of the release.
        facts: the pairs of each author, invented ones only.
        plan: the settings.
        public: held-out text of the release; without it `public_loss` is None.
        progress: is called with (phase, done, total, note).

    Returns:
        The data of the command's JSON envelope.

    Raises:
        UsageError: there are too few authors.
        FedmemError: vault, training or erasure failed.
    """
    torch.set_num_threads(1)  # with several threads, sums differed under load (I9)
    start, sets, reader = time.monotonic(), choose_sets(facts, plan), Reader(release, embedder, plan.length)
    learning, arms = Learning(plan.steps, plan.width, reader.length), dict[str, Arm]()

    def learn(throwaway: ThrowawayVault, topic: str, steps_before: int) -> None:
        report: Callable[[int], None] = lambda step: progress("learn", steps_before + step, 3 * plan.steps, "")  # noqa: E731
        throwaway.learn(topic, sets.texts(topic), learning, report)

    def measure_arm(throwaway: ThrowawayVault, name: str) -> None:
        progress("measure", len(arms), 3, name)
        arms[name] = measure_figures(reader, sets, throwaway.sources((FORGET, RETAIN)), public)

    with throwaway_vault(release, embedder) as throwaway:
        learn(throwaway, FORGET, 0)
        learn(throwaway, RETAIN, plan.steps)
        measure_arm(throwaway, BEFORE)
        verified = throwaway.erase(FORGET)
        measure_arm(throwaway, AFTER)
    with throwaway_vault(release, embedder) as never_held:
        learn(never_held, RETAIN, 2 * plan.steps)
        measure_arm(never_held, NEVER)
    progress("measure", 3, 3, "")
    seconds = round(time.monotonic() - start, 1)
    return _result(release, plan, sets, arms) | {"verified": verified, "seconds": seconds}


def _result(release: Release, plan: UnlearnPlan, sets: Sets, arms: Mapping[str, Arm]) -> dict[str, Any]:
    """Return a row for each metric, and the comparisons of the logits."""
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
