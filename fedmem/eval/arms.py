"""Measure one model: how much it reveals of the forget set, and how much it still knows of the other sets.

The names of the figures are those of TOFU (arXiv 2401.06121), MUSE (arXiv 2407.06460) and the papers that
`extraction`, `membership`, `canaries` and `truth` cite.

| figure | set | meaning |
|---|---|---|
| extraction_strength | forget | share of an answer that greedy decoding completes correctly |
| verbmem | forget | ROUGE-L F1 of the greedy continuation of a record's first half [MUSE, C1] |
| knowmem | forget | ROUGE-L F1 of the greedy answer to a question [MUSE, C2] |
| exposure | canaries | bits, of at most `log2 |R|` |
| mia_auc | forget, held out | loss attack on whole records |
| probability | forget | normalised probability of an answer |
| truth_ratio | forget | perturbed answers over the true one |
| retain_knowmem | retain | as knowmem [MUSE, C4] |
| model_utility | retain | harmonic mean of probability, ROUGE-L recall and max(0, 1 - truth ratio) |
| retain_loss, public_loss | retain, public text | nats a token |

TOFU's utility includes the same three figures of two more sets, real authors and world facts. A file of pairs does not
have these sets.

Invariants
- A text uses the private block of its topic, and held-out records use that of `forget`. Public text uses none.
- Of single texts only the truth ratios are kept. The forget quality is a test on them.

    arm = measure_figures(reader, sets, {FORGET: [block], RETAIN: [other]}, public)

Shapes: N texts, C perturbed answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedmem.eval.canaries import Canary, exposure
from fedmem.eval.extraction import rouge_l
from fedmem.eval.membership import auc
from fedmem.eval.perplexity import mean_loss
from fedmem.eval.reader import Private, Reader
from fedmem.eval.truth import Pair, model_utility, perturb_answers, probability, truth_ratio

FORGET, RETAIN = "forget", "retain"
PERTURBED = 5


@dataclass(frozen=True)
class Sets:
    """The texts of a measurement.

    Attributes:
        forget: pairs of the topic that is erased.
        retain: pairs of the topic that stays.
        holdout: pairs of authors that no block learns.
        canaries: sentences with a random code, records of `forget`.
        seed: decides the perturbed answers.
    """

    forget: list[Pair]
    retain: list[Pair]
    holdout: list[Pair]
    canaries: list[Canary]
    seed: int

    def texts(self, topic: str) -> list[str]:
        """Return the records of a topic, `forget` or `retain`: each pair as one text, and the canaries of `forget`.

        Args:
            topic: `forget` or `retain`.
        """
        pairs, canaries = (self.forget, self.canaries) if topic == FORGET else (self.retain, [])
        return [*map(" ".join, pairs), *(canary.text for canary in canaries)]


@dataclass(frozen=True)
class Arm:
    """The measurements of one model.

    Attributes:
        figures: the module's figures by name; None for one that was not measured.
        auc: AUC of the membership attack, 0 to 1.
        ratio_N: truth ratio of each pair of the forget set.
        digests: SHA-256 over logits, in a fixed order of topics and blocks in use.
    """

    figures: dict[str, float | None]
    auc: float
    ratio_N: NDArray[np.float64] = field(repr=False)
    digests: tuple[str, ...] = field(repr=False)


def measure_figures(reader: Reader, sets: Sets, blocks: Mapping[str, Private], public: Sequence[str]) -> Arm:
    """Measure every figure of one model.

    Args:
        reader: the model of a release.
        sets: the texts.
        blocks: the private blocks of the topics `forget` and `retain`; an empty sequence if there is none.
        public: held-out public text; without it `public_loss` is None.

    Returns:
        The measurements, as the module's table describes them.
    """
    ratio_N, figures = _forget_figures(reader, sets, blocks[FORGET])
    figures["exposure"] = _exposure(reader, sets.canaries, blocks[FORGET])
    figures["mia_auc"] = membership_auc = _membership(reader, sets, blocks[FORGET])
    figures |= _retain_figures(reader, sets, blocks[RETAIN])
    figures["public_loss"] = mean_loss(reader.text_losses(public, ())) if public else None
    return Arm(figures, membership_auc, ratio_N, _digests(reader, sets, blocks))


def _forget_figures(
    reader: Reader, sets: Sets, private: Private
) -> tuple[NDArray[np.float64], dict[str, float | None]]:
    questions, answers = _split(sets.forget)
    completions, references = reader.complete_halves(list(map(" ".join, sets.forget)), private)
    probability_N, ratio_N = _truth(reader, sets, sets.forget, private)
    return ratio_N, {
        "extraction_strength": float(reader.extraction_strength(questions, answers, private).mean()),
        "verbmem": _rouge(completions, references)[1],
        "knowmem": _rouge(reader.continue_prompts(questions, answers, private), answers)[1],
        "probability": float(probability_N.mean()),
        "truth_ratio": float(ratio_N.mean()),
    }


def _retain_figures(reader: Reader, sets: Sets, private: Private) -> dict[str, float | None]:
    questions, answers = _split(sets.retain)
    probability_N, ratio_N = _truth(reader, sets, sets.retain, private)
    recall, f1 = _rouge(reader.continue_prompts(questions, answers, private), answers)
    truth = float(np.maximum(0.0, 1.0 - ratio_N).mean())
    return {
        "retain_knowmem": f1,
        "model_utility": model_utility([float(probability_N.mean()), recall, truth]),
        "retain_loss": mean_loss(reader.losses(questions, answers, private)),
    }


def _split(pairs: Sequence[Pair]) -> tuple[list[str], list[str]]:
    """Return the questions, and the answers with the space that precedes them in a record."""
    return [question for question, _ in pairs], [f" {answer}" for _, answer in pairs]


def _rouge(candidates: list[str], references: list[str]) -> tuple[float, float]:
    """Return the mean ROUGE-L recall and F1."""
    recall_N, f1_N = np.array([rouge_l(text, end) for text, end in zip(candidates, references, strict=True)]).T
    return float(recall_N.mean()), float(f1_N.mean())


def _truth(
    reader: Reader, sets: Sets, pairs: list[Pair], private: Private
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the normalised probability of each answer, and its truth ratio, `[N]` each."""
    questions, answers = _split(pairs)
    wrong_answers = perturb_answers(pairs, sets.holdout, PERTURBED, sets.seed)
    true_N, counts_N = reader.losses(questions, answers, private)
    ends = [f" {text}" for pair_answers in wrong_answers for text in pair_answers]
    losses_M, counts_M = reader.losses(np.repeat(questions, PERTURBED).tolist(), ends, private)
    wrong_NC = (-losses_M / counts_M).reshape(len(pairs), PERTURBED)
    return probability(true_N, counts_N), truth_ratio(-true_N / counts_N, wrong_NC)


def _exposure(reader: Reader, canaries: Sequence[Canary], private: Private) -> float:
    bits = [
        exposure(reader.candidate_losses(canary.prefix, canary.candidates, private), canary.secret)
        for canary in canaries
    ]
    return float(np.mean(bits))


def _membership(reader: Reader, sets: Sets, private: Private) -> float:
    """Return the AUC of the loss attack: records to forget against records of authors that no block learns."""
    sides = [reader.text_losses(list(map(" ".join, pairs)), private) for pairs in (sets.forget, sets.holdout)]
    members, others = (-losses_N / counts_N for losses_N, counts_N in sides)
    return auc(members, others)


def _digests(reader: Reader, sets: Sets, blocks: Mapping[str, Private]) -> tuple[str, ...]:
    """Return digests of logits on each topic's records: with the block of the topic, and with all blocks."""
    all_sources = [source for topic in sorted(blocks) for source in blocks[topic]]
    cases = [(topic, private) for topic in (FORGET, RETAIN) for private in (blocks[topic], all_sources)]
    return tuple(reader.logits_digest(sets.texts(topic), private) for topic, private in cases)
