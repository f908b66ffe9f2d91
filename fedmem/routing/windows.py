"""Join the vectors of a text's windows into one vector, for texts longer than the input of the model.

Invariants
- Every token of a text counts, so that the whole text is judged and routed.
- A text of one window gets the vector of that window. A text without tokens gets zero.

>>> [round(float(x), 3) for x in joined(np.eye(2, dtype=np.float32), [3, 4])]
[0.6, 0.8]
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedmem.routing.embedder import unit


def joined(windows_WD: NDArray[np.float32], tokens: Sequence[int]) -> NDArray[np.float32]:
    """Return the mean of the windows' unit vectors, scaled to length 1.

    Args:
        windows_WD: a vector for each window.
        tokens: number of tokens of each window, its weight.

    Returns:
        `[D]` float32.
    """
    weights_W1 = np.asarray(tokens, dtype=np.float32)[:, None]
    sum_1D = (unit(windows_WD) * weights_W1).sum(axis=0, keepdims=True)
    vector_D: NDArray[np.float32] = unit(sum_1D)[0]
    return vector_D
