"""How the replies of one round become a mean: a running sum, or a coordinate-wise trimmed mean.

Invariants
- `Summed` holds one int64 array per parameter, whatever the cohort; `Trimmed` holds every reply of the round, so its
  memory is cohort × coordinates × 4 bytes, and a public number bounds the cohort.
- Neither depends on the order of replies (I9).
- Noise is for `Summed` only. Leaving out or changing one device moves a trimmed mean in every coordinate where it
  changes who is cut, by up to the distance to the next value: no L2 bound of one update carries over, so the clip norm
  is not its sensitivity and the Gaussian noise would protect nothing that we could state.

>>> import numpy as np
>>> got = Trimmed(0.34, clip=1.0)
>>> for cells in (2**22, 2**21, -(2**23)):
...     got.add({"w": np.array([cells], np.int32)})
>>> got.mean({"w": (1,)})["w"].tolist()
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
    """The sum of updates over a public divisor, with the plan's noise; memory does not grow with the cohort."""

    def __init__(self, shapes: Shapes) -> None:
        self._sums = fixedpoint.empty_sums(shapes)

    def add(self, update: Update) -> None:
        """Add one clipped update."""
        fixedpoint.add(self._sums, update)

    def mean(self, plan: DevicePlan, noise: Noise | None) -> Params:
        """Noisy sum over the expected cohort."""
        return device_dp.noisy_mean(self._sums, plan, noise)


class Trimmed:
    """The mean of what is left after cutting the `share` largest and smallest values of every coordinate.

    Guarantees: with n replies, floor(share * n) of them may hold anything, and each coordinate of the result still lies
    within the range of the honest ones (Yin et al. 2018, Def. 2). Each counted reply is one value, silence included.

    | replies | result |
    |---|---|
    | none | zeros |
    | fewer than 1 / share | nothing is cut: the plain mean |
    """

    def __init__(self, share: float, clip: float) -> None:
        self._share, self._step = share, fixedpoint.grid_step(clip)
        self._updates: list[Update] = []

    def add(self, update: Update) -> None:
        """Keep one clipped update until the round ends."""
        self._updates.append(update)

    def mean(self, shapes: Shapes) -> Params:
        """The trimmed mean over the counted replies."""
        return {name: self._one(name, shape) for name, shape in shapes.items()}

    def _one(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        count = len(self._updates)
        if count == 0:
            return np.zeros(shape, np.float32)
        values = np.stack([update[name] for update in self._updates])
        values.sort(axis=0)
        cut = int(self._share * count)
        total = values[cut : count - cut].sum(axis=0, dtype=np.int64)
        mean: NDArray[np.float32] = (fixedpoint.decode(total, self._step) / (count - 2 * cut)).astype(np.float32)
        return mean
