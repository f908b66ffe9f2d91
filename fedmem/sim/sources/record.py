"""Define the record that every source of private text yields.

Invariants
- `topic` is the topic that the generator or the owner declares. The policy decides where the record is placed.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SourceRecord:
    """A document before placement.

    Attributes:
        text: the text.
        topic: the topic as declared; None where nothing was declared.
        device: the name of its device as declared; None where nothing was declared.
        split: "train" or "heldout".
    """

    text: str
    topic: str | None
    device: str | None = None
    split: Literal["train", "heldout"] = "train"
