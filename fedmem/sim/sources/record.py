"""What a source of private text yields.

Invariants
- `topic` is what the text is about as its generator or owner says; where it is placed, the policy decides.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SourceRecord:
    """One document before placement; `topic`, `device` and `split` as declared, None where nothing was."""

    text: str
    topic: str | None
    device: str | None = None
    split: Literal["train", "heldout"] = "train"
