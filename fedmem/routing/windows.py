"""A text longer than its model reads at once: one vector from the vectors of its windows.

Invariants
- Every token of a text counts: what is not read can be neither judged nor routed.
- A text of one window gets that window's vector; a text without tokens gets zero.

>>> [round(float(x), 3) for x in joined(np.eye(2, dtype=np.float32), [3, 4])]
[0.6, 0.8]
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedmem.routing.embedder import unit


def joined(windows_WD: NDArray[np.float32], tokens: Sequence[int]) -> NDArray[np.float32]:
    """Unit mean of the windows' unit vectors, each weighted with its number of tokens."""
    weights_W1 = np.asarray(tokens, dtype=np.float32)[:, None]
    sum_1D = (unit(windows_WD) * weights_W1).sum(axis=0, keepdims=True)
    vector_D: NDArray[np.float32] = unit(sum_1D)[0]
    return vector_D
