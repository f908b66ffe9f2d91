"""Load public texts by name: the installed Wikipedia leads, or a JSONL file of records.

Invariants
- A record that declares a topic is private. A file with such a record is refused, so no anchor and no bank learns
  from it.
- Records that the file marks as held out are not returned, so nothing is trained on them.

    texts, attribution = public_texts("wikipedia")
"""

from pathlib import Path

from fedmem.errors import Refused, UsageError
from fedmem.sim.sources import userfile, wikipedia

WIKIPEDIA = "wikipedia"


def public_texts(name: str) -> tuple[list[str], str]:
    """Return public texts in their order, and their attribution.

    Args:
        name: the word `wikipedia`, a JSONL file, or a folder of them.

    Raises:
        UsageError: there is no such file, or a line of it is not a record.
        Refused: a record declares a topic.
    """
    if name == WIKIPEDIA:
        return [document.text for document in wikipedia.load()], wikipedia.ATTRIBUTION
    if not Path(name).exists():
        raise UsageError(f"There is no file {name}. Name a .jsonl file, a folder of them, or the word {WIKIPEDIA}.")
    records = userfile.load(Path(name))
    if any(record.topic for record in records):
        raise Refused(
            f"{name} holds records that declare a topic, so private ones; an anchor and a bank learn from public "
            "text only. Take those records out."
        )
    return [record.text for record in records if record.split == "train"], "The user's own public text."
