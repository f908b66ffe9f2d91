"""Compute truth ratio, forget quality and model utility, as TOFU (arXiv 2401.06121) defines them.

TOFU has a paraphrase and five perturbed answers for each pair, written by a large model. A file of plain pairs has
neither. Here the answer itself stands for the paraphrase. A perturbed answer is the answer with names and numbers from
other authors' answers: it has the same form and wrong facts.

Invariants
- Perturbed answers are a function of (pairs, others, count, seed), and none equals the answer.
- Words of the question are not replaced, so the answer is still about the same person.
- Probabilities are normalised by length, so long answers do not count as less true than short ones.

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


def perturb_answers(pairs: Sequence[Pair], others: Sequence[Pair], count: int, seed: int) -> list[list[str]]:
    """Return wrong answers for each pair, with the form of the true one.

    Args:
        pairs: the pairs.
        others: pairs of other authors, whose names and numbers are taken.
        count: number of wrong answers for each pair.
        seed: decides the draw.

    Raises:
        UsageError: the answers of `others` have no usable word.
    """
    rng = np.random.default_rng([seed, 0x54525554])
    offered: dict[str, list[str]] = {"name": [], "number": [], "plain": []}
    for kind, word in sorted({(_kind(word), word) for _, answer in others for word in _words(answer)[1:]}):
        offered[kind].append(word)
    return [[_changed(question, answer, offered, rng) for _ in range(count)] for question, answer in pairs]


def _changed(question: str, answer: str, offered: dict[str, list[str]], rng: np.random.Generator) -> str:
    """Return the answer with its names and numbers replaced, or with its longest word replaced if it has none."""
    question_words, parts = set(_words(question.lower())), _WORD.split(answer)
    parts = parts if len(parts) > 1 else ["", answer, ""]
    words = range(1, len(parts), 2)
    replaceable = [at for at in words if parts[at].lower() not in question_words] or [*words]
    # The first word begins with a capital in any case, so that does not make it a name.
    places = [at for at in replaceable if _kind(parts[at]) != "plain" and at > 1]
    places = places or [max(replaceable, key=lambda at: len(parts[at]))]
    for at in places:
        substitutes = [word for word in offered[_kind(parts[at])] if word != parts[at]]
        substitutes = substitutes or [word for kind in offered.values() for word in kind if word != parts[at]]
        if not substitutes:
            raise UsageError("There are too few other answers to take wrong facts from; give more authors.")
        parts[at] = substitutes[int(rng.integers(len(substitutes)))]
    return "".join(parts)


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _kind(word: str) -> str:
    if any(char.isdigit() for char in word):
        return "number"
    return "name" if word[0].isupper() else "plain"


def probability(losses_N: Vector, counts_N: NDArray[np.int64]) -> Vector:
    """Return P(a | q) ** (1 / |a|) of each answer, `[N]` [TOFU, "Model Utility", probability].

    Args:
        losses_N: summed loss of each answer, in nats.
        counts_N: number of tokens of each answer.
    """
    scores: Vector = np.exp(-losses_N / counts_N)
    return scores


def truth_ratio(true_N: Vector, perturbed_NC: Vector) -> Vector:
    """Return the mean normalised probability of the perturbed answers over that of the true one [TOFU, "Truth Ratio"].

    Args:
        true_N: minus the loss a token of each true answer, in nats.
        perturbed_NC: the same for the C perturbed answers.

    Returns:
        `[N]`: 0 if the model is sure of the true answer, above 1 if it prefers the perturbed ones.
    """
    ratios: Vector = np.exp(perturbed_NC - true_N[:, None]).mean(1)
    return ratios


def forget_quality(ratio_N: Vector, reference_N: Vector) -> float:
    """Return the forget quality: the p-value of a two-sided Kolmogorov-Smirnov test [TOFU, "Forget Quality"].

    Args:
        ratio_N: truth ratios of the model on the forget set.
        reference_N: those of the model that never saw the forget set.

    Returns:
        0 to 1: 1 if the ratios are alike. TOFU counts 0.05 and above as forgotten.
    """
    return float(ks_2samp(ratio_N, reference_N).pvalue)


def model_utility(parts: Sequence[float]) -> float:
    """Return the harmonic mean of scores in [0, 1] [TOFU, "Model Utility"]. It is 0 if one score is 0.

    Args:
        parts: scores in [0, 1], at least one.
    """
    return 0.0 if min(parts) <= 0.0 else len(parts) / sum(1.0 / part for part in parts)
