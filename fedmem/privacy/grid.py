"""Choose the public grid on which a private training sums the gradients of records.

Invariants
- The grid is a function of clip norm, noise, size of the block and declared cap of records, which are all public.
- No sum of so many records, noise included, leaves int64.

>>> grid = Grid.fitting(clip=0.1, noise_multiplier=1.0, values=196_608, records=10_000)
>>> grid.spacing == 2.0**-24, grid.cells
(True, 1677721)
"""

import math
from dataclasses import dataclass

from fedmem.errors import Refused
from fedmem.privacy.rounded_gaussian import LEAST_STD, MOST_STD, MOST_VALUES, REACH

LOSS = 2.0**-11
"""The greatest share of the clip norm that truncation takes from a record."""
WITHOUT_NOISE = 2.0**-40
"""The cell of a sum without noise, in clip norms: such a sum is for comparisons, in which the grid should not show."""
SUM_LIMIT = 2**62


@dataclass(frozen=True)
class Grid:
    """The public grid of a sum over records.

    Attributes:
        spacing: width of a cell, a power of two.
        clip: the clip norm.
    """

    spacing: float
    clip: float

    @property
    def cells(self) -> int:
        """The clip norm in cells, rounded down: the L2 sensitivity of the sum to one added or removed record."""
        return math.floor(self.clip / self.spacing)

    def std(self, noise_multiplier: float) -> float:
        """Return the std of the noise in cells.

        Args:
            noise_multiplier: noise std divided by the clip norm, at least 0.
        """
        return noise_multiplier * (self.clip / self.spacing)

    @classmethod
    def fitting(cls, clip: float, noise_multiplier: float, values: int, records: int) -> "Grid":
        """Return the widest grid of a power of two that is fine enough.

        Truncation moves each value by less than one cell, so it takes less than spacing * sqrt(values) from a norm;
        that is at most LOSS * clip. The noise has a std of at least LEAST_STD cells, as its error bound needs.

        Args:
            clip: the clip norm.
            noise_multiplier: noise std divided by the clip norm; 0 for no noise.
            values: number of values of the block.
            records: the declared greatest number of records.

        Raises:
            Refused: the clip norm is not a finite number above 0, or the sum could leave int64, or the noise has no
                error bound on such a grid.
        """
        if not (math.isfinite(clip) and clip > 0):
            raise Refused("A clip norm is a finite number above 0; nothing was computed. Give another one.")
        finest = noise_multiplier / LEAST_STD if noise_multiplier else WITHOUT_NOISE
        widest = clip * min(LOSS / math.sqrt(max(1, values)), finest)
        spacing = math.ldexp(1.0, math.frexp(widest)[1] - 1) if widest else 0.0
        if not (spacing and math.isfinite(1 / spacing)) or values > MOST_VALUES:
            raise Refused("The clip norm, the noise or the block has no grid of float64; nothing was computed.")
        grid = cls(spacing, clip)
        std = grid.std(noise_multiplier)
        if std >= MOST_STD or records * grid.cells + math.ceil(REACH * std) >= SUM_LIMIT:
            raise Refused(
                "The sum of so many records with this noise could overflow the grid's integers; nothing was computed. "
                "Declare fewer records, or another noise multiplier."
            )
        return grid
