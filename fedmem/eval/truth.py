"""Truth ratio, forget quality and model utility, as TOFU (arXiv 2401.06121) defines them.

TOFU ships a paraphrase and five perturbed answers, written by a large model, with every pair. A file of plain pairs has
neither: the answer itself stands for the paraphrase, and a perturbed answer is the answer with its names and numbers
taken from other authors' answers, so that its form stays and its facts are wrong.

Invariants
- Perturbed answers are a function of (pairs, others, count, seed), and none is the answer.
- Nothing of the question is replaced: who is asked about stays the same.
- Probabilities are normalised by length, so long answers are not less true than short ones.

>>> truth_ratio(np.log([0.5]), np.log([[0.25, 0.25]])).tolist()
[0.5]

Shapes: N pairs, C perturbed answers of a pair.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp  # type: ignore[import-untyped]

from fedmem.errors import UsageError

Pair = tuple[str, str]
"""A question and its answer."""

Vector = NDArray[np.float64]
_WORD = re.compile(r"(\w+)")


def perturbed(pairs: Sequence[Pair], others: Sequence[Pair], count: int, seed: int) -> list[list[str]]:
    """For each pair `count` answers of its form with other facts. Raises UsageError where `others` offer no word."""
    rng = np.random.default_rng([seed, 0x54525554])
    offered: dict[str, list[str]] = {"name": [], "number": [], "plain": []}
    for kind, word in sorted({(_kind(word), word) for _, answer in others for word in _words(answer)[1:]}):
        offered[kind].append(word)
    return [[_changed(question, answer, offered, rng) for _ in range(count)] for question, answer in pairs]


def _changed(question: str, answer: str, offered: dict[str, list[str]], rng: np.random.Generator) -> str:
    """The answer with its names and numbers replaced, or its longest word where it has none."""
    asked, parts = set(_words(question.lower())), _WORD.split(answer)
    parts = parts if len(parts) > 1 else ["", answer, ""]
    own = [at for at in range(1, len(parts), 2) if parts[at].lower() not in asked] or [*range(1, len(parts), 2)]
    # The first word has a capital whatever it is.
    places = [at for at in own if _kind(parts[at]) != "plain" and at > 1]
    places = places or [max(own, key=lambda at: len(parts[at]))]
    for at in places:
        other = [word for word in offered[_kind(parts[at])] if word != parts[at]]
        other = other or [word for kind in offered.values() for word in kind if word != parts[at]]
        if not other:
            raise UsageError("There are too few other answers to take wrong facts from; give more authors.")
        parts[at] = other[int(rng.integers(len(other)))]
    return "".join(parts)


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _kind(word: str) -> str:
    if any(char.isdigit() for char in word):
        return "number"
    return "name" if word[0].isupper() else "plain"


def probability(losses_N: Vector, counts_N: NDArray[np.int64]) -> Vector:
    """P(a | q) ** (1 / |a|) of each answer from its summed loss in nats [TOFU, "Model Utility", probability]."""
    scores: Vector = np.exp(-losses_N / counts_N)
    return scores


def truth_ratio(true_N: Vector, perturbed_NC: Vector) -> Vector:
    """Mean normalised probability of the perturbed answers over that of the true one [TOFU, "Truth Ratio"].

    Arguments are losses a token with a minus, in nats. 0 where the true answer is sure, above 1 where it is doubted.
    """
    ratios: Vector = np.exp(perturbed_NC - true_N[:, None]).mean(1)
    return ratios


def forget_quality(ratio_N: Vector, reference_N: Vector) -> float:
    """p of a two-sided Kolmogorov-Smirnov test between truth ratios on the forget set: the model's, and those of the
    model that never saw it [TOFU, "Forget Quality"]. 1 where they are alike; TOFU calls 0.05 and above forgotten."""
    return float(ks_2samp(ratio_N, reference_N).pvalue)


def model_utility(parts: Sequence[float]) -> float:
    """Harmonic mean of scores in [0, 1] [TOFU, "Model Utility"]: one that is 0 makes all of it 0."""
    return 0.0 if min(parts) <= 0.0 else len(parts) / sum(1.0 / part for part in parts)
