"""What a training is asked for: public, frozen, and written down whole in its folder.

>>> from fedmem.training.settings import Settings
>>> flat(TrainPlan("cotrain", 256, Settings(steps=5, batch=2, lr=1e-3), seed=7))["steps"]
5
"""

from dataclasses import asdict, dataclass
from typing import Any

from fedmem.errors import UsageError
from fedmem.training.settings import Settings

TOGETHER, APART = ("cotrain", "joint"), ("frozen", "posthoc")
MODES = (*TOGETHER, *APART)
"""How a bank is trained [docs/method.md, §4]: with its anchor, or alone under an anchor that stays as it is."""


@dataclass(frozen=True)
class AnchorPlan:
    """Preset, entries of the tokenizer, tokens of a row, settings and seed of an anchor's pretraining."""

    preset: str
    vocabulary: int
    length: int
    settings: Settings
    seed: int


@dataclass(frozen=True)
class BankPlan:
    """Kind, branching, mean width of each level, where the rows lie (`fedmem.memory.placement`), and seed of a bank."""

    kind: str
    branching: int
    widths: tuple[int, ...]
    placement: str
    seed: int


@dataclass(frozen=True)
class TrainPlan:
    """Mode, tokens of a row, settings and seed of a bank's training. Raises UsageError for another mode."""

    mode: str
    length: int
    settings: Settings
    seed: int

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"Unknown mode {self.mode!r}; choose one of {', '.join(MODES)}.")


def flat(plan: AnchorPlan | TrainPlan) -> dict[str, Any]:
    """A plan as inputs: its settings beside the rest."""
    facts: dict[str, Any] = asdict(plan)
    settings: dict[str, Any] = facts.pop("settings")
    return facts | settings
