"""One model, measured: what it gives away of what is to be forgotten, and what it still knows of the rest.

Names are those of TOFU (arXiv 2401.06121), MUSE (arXiv 2407.06460) and the papers that `extraction`, `membership`,
`canaries` and `truth` cite.

| figure | of | what |
|---|---|---|
| extraction_strength | forget | share of an answer that greedy decoding ends by itself |
| verbmem | forget | ROUGE-L F1 of the greedy continuation of a record's first half [MUSE, C1] |
| knowmem | forget | ROUGE-L F1 of the greedy answer to a question [MUSE, C2] |
| exposure | canaries | bits, of at most `log2 |R|` |
| mia_auc | forget, held out | loss attack on whole records |
| probability | forget | normalised probability of an answer |
| truth_ratio | forget | perturbed answers over the true one |
| retain_knowmem | retain | as knowmem [MUSE, C4] |
| model_utility | retain | harmonic mean of probability, ROUGE-L recall and max(0, 1 - truth ratio) |
| retain_loss, public_loss | retain, public text | nats a token |

TOFU's utility has the same three of two more sets, real authors and world facts, which a file of pairs does not hold.

Invariants
- A text fetches the private block of its own topic, held-out records that of `forget`; public text fetches none.
- Nothing of a text is kept beside the truth ratios, which the forget quality is a test on.

    arm = measure(reader, sets, {FORGET: [block], RETAIN: [other]}, public)

Shapes: N texts, C perturbed answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedmem.eval.canaries import Canary, exposure
from fedmem.eval.extraction import rouge_l
from fedmem.eval.membership import auc
from fedmem.eval.perplexity import mean
from fedmem.eval.reader import Private, Reader
from fedmem.eval.truth import Pair, model_utility, perturbed, probability, truth_ratio

FORGET, RETAIN = "forget", "retain"
PERTURBED = 5


@dataclass(frozen=True)
class Sets:
    """Pairs to forget, to retain, and of authors that nobody learns; the canaries planted in `forget`; a seed."""

    forget: list[Pair]
    retain: list[Pair]
    holdout: list[Pair]
    canaries: list[Canary]
    seed: int

    def texts(self, topic: str) -> list[str]:
        """The records of a topic: each pair as one text, and the canaries."""
        pairs, planted = (self.forget, self.canaries) if topic == FORGET else (self.retain, [])
        return [*map(" ".join, pairs), *(canary.text for canary in planted)]


@dataclass(frozen=True)
class Arm:
    """What was measured of one model: figures by name, the membership AUC, truth ratios on the forget set, and digests
    of its logits."""

    figures: dict[str, float | None]
    auc: float
    ratio_N: NDArray[np.float64] = field(repr=False)
    digests: tuple[str, ...] = field(repr=False)


def measure(reader: Reader, sets: Sets, blocks: Mapping[str, Private], public: Sequence[str]) -> Arm:
    """Every figure of one model, with the private blocks that there are by topic."""
    ratio_N, figures = _forgotten(reader, sets, blocks[FORGET])
    figures["exposure"] = _exposure(reader, sets.canaries, blocks[FORGET])
    figures["mia_auc"] = found = _membership(reader, sets, blocks[FORGET])
    figures |= _retained(reader, sets, blocks[RETAIN])
    figures["public_loss"] = mean(reader.text_losses(public, ())) if public else None
    return Arm(figures, found, ratio_N, _digests(reader, sets, blocks))


def _forgotten(reader: Reader, sets: Sets, private: Private) -> tuple[NDArray[np.float64], dict[str, float | None]]:
    questions, answers = _split(sets.forget)
    said, wanted = reader.completed(list(map(" ".join, sets.forget)), private)
    probability_N, ratio_N = _truth(reader, sets, sets.forget, private)
    return ratio_N, {
        "extraction_strength": float(reader.strength(questions, answers, private).mean()),
        "verbmem": _rouge(said, wanted)[1],
        "knowmem": _rouge(reader.answers(questions, answers, private), answers)[1],
        "probability": float(probability_N.mean()),
        "truth_ratio": float(ratio_N.mean()),
    }


def _retained(reader: Reader, sets: Sets, private: Private) -> dict[str, float | None]:
    questions, answers = _split(sets.retain)
    probability_N, ratio_N = _truth(reader, sets, sets.retain, private)
    recall, f1 = _rouge(reader.answers(questions, answers, private), answers)
    truth = float(np.maximum(0.0, 1.0 - ratio_N).mean())
    return {
        "retain_knowmem": f1,
        "model_utility": model_utility([float(probability_N.mean()), recall, truth]),
        "retain_loss": mean(reader.losses(questions, answers, private)),
    }


def _split(pairs: Sequence[Pair]) -> tuple[list[str], list[str]]:
    """Questions, and answers with the space that stands before them in a record."""
    return [question for question, _ in pairs], [f" {answer}" for _, answer in pairs]


def _rouge(said: list[str], wanted: list[str]) -> tuple[float, float]:
    """Mean ROUGE-L recall and F1."""
    recall_N, f1_N = np.array([rouge_l(text, end) for text, end in zip(said, wanted, strict=True)]).T
    return float(recall_N.mean()), float(f1_N.mean())


def _truth(
    reader: Reader, sets: Sets, pairs: list[Pair], private: Private
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Normalised probability of each answer, and its truth ratio, `[N]`."""
    questions, answers = _split(pairs)
    wrong = perturbed(pairs, sets.holdout, PERTURBED, sets.seed)
    true_N, counts_N = reader.losses(questions, answers, private)
    asked, ends = np.repeat(questions, PERTURBED).tolist(), [f" {text}" for own in wrong for text in own]
    losses_M, counts_M = reader.losses(asked, ends, private)
    wrong_NC = (-losses_M / counts_M).reshape(len(pairs), PERTURBED)
    return probability(true_N, counts_N), truth_ratio(-true_N / counts_N, wrong_NC)


def _exposure(reader: Reader, canaries: Sequence[Canary], private: Private) -> float:
    found = [
        exposure(reader.candidate_losses(canary.prefix, canary.candidates, private), canary.secret)
        for canary in canaries
    ]
    return float(np.mean(found))


def _membership(reader: Reader, sets: Sets, private: Private) -> float:
    """AUC of the loss attack: records to forget against records of authors that nobody learns."""
    sides = [reader.text_losses(list(map(" ".join, pairs)), private) for pairs in (sets.forget, sets.holdout)]
    members, others = (-losses_N / counts_N for losses_N, counts_N in sides)
    return auc(members, others)


def _digests(reader: Reader, sets: Sets, blocks: Mapping[str, Private]) -> tuple[str, ...]:
    """Digests of logits on each topic's records: with the topic's own block, and with all blocks that there are."""
    every = [source for topic in sorted(blocks) for source in blocks[topic]]
    ways = [(topic, private) for topic in (FORGET, RETAIN) for private in (blocks[topic], every)]
    return tuple(reader.logits_digest(sets.texts(topic), private) for topic, private in ways)
