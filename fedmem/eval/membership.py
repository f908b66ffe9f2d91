"""Measure membership inference: how well a reader of the model can tell training texts from other texts.

Invariants
- Pure functions of scores; the order of the texts changes nothing.
- A tie counts half, so a model that gives every text the same score has an AUC of exactly 0.5.

>>> auc(members=[-1.0, -2.0], others=[-3.0, -2.0])
0.875
>>> round(privleak(0.75, reference=0.5), 1)
-50.0
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Scores = Sequence[float] | NDArray[np.float64]


def auc(members: Scores, others: Scores) -> float:
    """Return the area under the ROC curve: the probability that a member scores above another text.

    The loss attack scores a text by minus its loss a token [Yeom et al. 2018, arXiv 1709.01604, section 3.2].

    Args:
        members: scores of the training texts.
        others: scores of texts that were not trained on.

    Returns:
        0 to 1: 0.5 for a guess, 1 if the attack identifies every member.

    Raises:
        ValueError: a side is empty or has a NaN.
    """
    members_M, others_N = np.asarray(members, np.float64), np.asarray(others, np.float64)
    if not len(members_M) or not len(others_N) or np.isnan(members_M).any() or np.isnan(others_N).any():
        raise ValueError("an AUC needs scores on both sides, and none of them NaN")
    difference_MN = members_M[:, None] - others_N[None, :]
    return float(np.mean((difference_MN > 0) + 0.5 * (difference_MN == 0)))


def privleak(measured: float, reference: float) -> float | None:
    """Return PrivLeak in percent: the relative distance of an AUC from that of a model that never saw the members.

    MUSE (arXiv 2407.06460, criterion C3) uses one minus the AUC of `auc`; this keeps its sign.

    Args:
        measured: AUC of the measured model.
        reference: AUC of the model that never saw the members.

    Returns:
        0 is the right value. -100 reveals every member. Above 0, members have unusually low scores. None if the
        reference identifies every member.
    """
    return 100.0 * (reference - measured) / (1.0 - reference) if reference < 1.0 else None
