"""The mean of the replies of one round: a running sum, or a coordinate-wise trimmed mean.

Invariants
- `Summed` holds one int64 array per parameter, whatever the size of the cohort. `Trimmed` holds every reply of the
  round: its memory is cohort × coordinates × 4 bytes, and a public number bounds the cohort.
- Neither depends on the order of replies (I9).
- Noise is for `Summed` only. To remove or change one device moves a trimmed mean in every coordinate where other values
  are then cut, by up to the distance to the next value. No L2 bound of one update carries over. The clip norm is
  therefore not the sensitivity of a trimmed mean, and Gaussian noise would give no guarantee that we could state.

>>> import numpy as np
>>> replies = Trimmed(0.34, clip=1.0)
>>> for cells in (2**22, 2**21, -(2**23)):
...     replies.add({"w": np.array([cells], np.int32)})
>>> replies.mean({"w": (1,)})["w"].tolist()
[0.25]
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedmem.federation import device_dp, fixedpoint
from fedmem.federation.cohorts import Noise
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.wire import Params, Shapes

Update = Mapping[str, NDArray[np.int32]]


class Summed:
    """The noisy sum of updates over a public divisor. Its memory does not grow with the cohort.

    Args:
        shapes: name -> shape of the federated parameters.
    """

    def __init__(self, shapes: Shapes) -> None:
        self._sums = fixedpoint.empty_sums(shapes)

    def add(self, update: Update) -> None:
        """Add one clipped update.

        Args:
            update: the update in grid cells, int32 arrays by name, with a norm of at most the clip norm.
        """
        fixedpoint.add(self._sums, update)

    def mean(self, plan: DevicePlan, noise: Noise | None) -> Params:
        """Return the noisy sum, divided by the expected cohort; float32 arrays by name.

        Args:
            noise: the stream of this round; None only where the plan adds no noise.

        Raises:
            Refused: the plan adds noise and `noise` is None.
        """
        return device_dp.noisy_mean(self._sums, plan, noise)


class Trimmed:
    """The mean of the values that remain in each coordinate after the largest and the smallest are cut.

    Args:
        share: share of the replies that is cut at either end, in [0, 0.5).
        clip: the plan's clip norm, which gives the grid step.

    Guarantees: of n replies, floor(share * n) may hold any values. Each coordinate of the result still lies within the
    range of the honest replies (Yin et al. 2018, Def. 2). Each counted reply is one value; so is a reply of zeros.

    | replies | result |
    |---|---|
    | none | zeros |
    | fewer than 1 / share | nothing is cut: the plain mean |
    """

    def __init__(self, share: float, clip: float) -> None:
        self._share, self._step = share, fixedpoint.grid_step(clip)
        self._updates: list[Update] = []

    def add(self, update: Update) -> None:
        """Keep one clipped update until the round ends.

        Args:
            update: as in `Summed.add`.
        """
        self._updates.append(update)

    def mean(self, shapes: Shapes) -> Params:
        """Return the trimmed mean over the counted replies: float32 arrays by name.

        Args:
            shapes: name -> shape of the federated parameters.
        """
        return {name: self._trimmed(name, shape) for name, shape in shapes.items()}

    def _trimmed(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        count = len(self._updates)
        if count == 0:
            return np.zeros(shape, np.float32)
        values = np.stack([update[name] for update in self._updates])
        values.sort(axis=0)
        cut = int(self._share * count)
        total = values[cut : count - cut].sum(axis=0, dtype=np.int64)
        mean: NDArray[np.float32] = (fixedpoint.decode(total, self._step) / (count - 2 * cut)).astype(np.float32)
        return mean
