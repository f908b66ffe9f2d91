"""Membership inference: can a reader of the model tell what it was trained on from what it was not?

Invariants
- Pure: scores in, one number out; the order of the texts is without effect.
- A tie counts half, so a model that says the same of every text has an AUC of exactly 0.5.

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
    """Chance that a member scores above another text: area under the ROC curve of the attack.

    The loss attack scores a text by minus its loss a token [Yeom et al. 2018, arXiv 1709.01604, section 3.2], so a
    half is what an attacker guesses and 1 tells every member. Raises ValueError where a side is empty or NaN.
    """
    members_M, others_N = np.asarray(members, np.float64), np.asarray(others, np.float64)
    if not len(members_M) or not len(others_N) or np.isnan(members_M).any() or np.isnan(others_N).any():
        raise ValueError("an AUC needs scores on both sides, and none of them NaN")
    difference_MN = members_M[:, None] - others_N[None, :]
    return float(np.mean((difference_MN > 0) + 0.5 * (difference_MN == 0)))


def privleak(found: float, reference: float) -> float | None:
    """PrivLeak in percent: how far an AUC is from that of the model that never saw the members, relative to it.

    MUSE (arXiv 2407.06460, criterion C3) counts one minus the AUC of `auc`; its sign is kept: 0 is right, -100 gives
    every member away, above 0 the members stand out the other way. None where the reference tells every member.
    """
    return 100.0 * (reference - found) / (1.0 - reference) if reference < 1.0 else None
