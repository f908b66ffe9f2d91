"""The public shape of a bank: everything that block sizes follow from.

>>> spec = MemorySpec(layers=4, d_model=128, branching=4, widths=(32, 16, 8))
>>> spec.blocks(2), spec.width
(16, 56)
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class MemorySpec:
    """Layers and width of the anchor, branching k of the tree, and the width r of a block per level."""

    layers: int
    d_model: int
    branching: int
    widths: tuple[int, ...]

    @property
    def levels(self) -> int:
        """Number of levels p."""
        return len(self.widths)

    @property
    def width(self) -> int:
        """Fetched width: one block of each level."""
        return sum(self.widths)

    def blocks(self, level: int) -> int:
        """Number of blocks of a level, counted from 1: k ** level."""
        return int(self.branching**level)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self) | {"widths": list(self.widths)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "MemorySpec":
        """Inverse of `to_dict`."""
        return cls(data["layers"], data["d_model"], data["branching"], tuple(data["widths"]))
