"""The plans of trainings: public and frozen. A training writes all fields of its plan into its folder.

>>> from fedmem.training.settings import Settings
>>> plan_inputs(TrainPlan("cotrain", 256, Settings(steps=5, batch=2, lr=1e-3), seed=7))["steps"]
5
"""

from dataclasses import asdict, dataclass
from typing import Any

from fedmem.errors import UsageError
from fedmem.training.settings import Settings

TOGETHER, APART = ("cotrain", "joint"), ("frozen", "posthoc")
MODES = (*TOGETHER, *APART)
"""The modes of bank training [docs/method.md, §4]: together with the anchor, or alone under a frozen anchor."""


@dataclass(frozen=True)
class AnchorPlan:
    """The plan of an anchor's pretraining.

    Attributes:
        preset: name of the anchor's shape.
        vocabulary: entries of the tokenizer, at most.
        length: tokens of a row.
        settings: settings of the steps.
        seed: seed of all draws.
    """

    preset: str
    vocabulary: int
    length: int
    settings: Settings
    seed: int


@dataclass(frozen=True)
class BankPlan:
    """The plan of a new bank.

    Attributes:
        kind: kind of memory.
        branching: number of children k of a node of the tree.
        widths: mean width of the layers, for each level.
        placement: distribution of rows over layers, as in `fedmem.memory.placement`.
        seed: seed of tree and blocks.
    """

    kind: str
    branching: int
    widths: tuple[int, ...]
    placement: str
    seed: int


@dataclass(frozen=True)
class TrainPlan:
    """The plan of a bank's training. Raises UsageError if `mode` is not one of `MODES`.

    Attributes:
        mode: one of `MODES`.
        length: tokens of a row.
        settings: settings of the steps.
        seed: seed of all draws.
    """

    mode: str
    length: int
    settings: Settings
    seed: int

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"Unknown mode {self.mode!r}; choose one of {', '.join(MODES)}.")


def plan_inputs(plan: AnchorPlan | TrainPlan) -> dict[str, Any]:
    """Return the fields of a plan and of its settings in one flat dict, as inputs of a training.

    Args:
        plan: the plan of a training.
    """
    inputs: dict[str, Any] = asdict(plan)
    settings: dict[str, Any] = inputs.pop("settings")
    return inputs | settings
