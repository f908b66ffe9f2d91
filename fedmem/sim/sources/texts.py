"""Public texts by name: the installed Wikipedia leads, or a JSONL file of records.

Invariants
- A record that declares a topic is private by its owner's word: a file with one is refused, so that no anchor and no
  bank learns from it.
- What the file marks as held out is left out: nobody trains on it.

    texts, attribution = public_texts("wikipedia")
"""

from pathlib import Path

from fedmem.errors import Refused, UsageError
from fedmem.sim.sources import userfile, wikipedia

WIKIPEDIA = "wikipedia"


def public_texts(named: str) -> tuple[list[str], str]:
    """The texts in their order, and whose they are. Raises UsageError, or Refused for a record with a topic."""
    if named == WIKIPEDIA:
        return [document.text for document in wikipedia.load()], wikipedia.ATTRIBUTION
    if not Path(named).exists():
        raise UsageError(f"There is no file {named}. Name a .jsonl file, a folder of them, or the word {WIKIPEDIA}.")
    records = userfile.load(Path(named))
    if any(record.topic for record in records):
        raise Refused(
            f"{named} holds records that declare a topic, so private ones; an anchor and a bank learn from public "
            "text only. Take those records out."
        )
    return [record.text for record in records if record.split == "train"], "The user's own public text."
