"""Text for the utility of private blocks: public leads, the quickstart's private topics, and a file of clinical notes.

Invariants
- The repository holds none of the text; what is private here was invented.
- Split and order follow the seed alone.
"""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.claims.text import leads
from fedmem.errors import UsageError
from fedmem.routing.embedder import StaticEmbedder
from fedmem.routing.router import route
from fedmem.routing.tree import train_tree
from fedmem.sim.sources import patients, persons
from fedmem.sim.sources.record import SourceRecord

HELDOUT = 100
SHORTEST = 40  # characters of a clinical note
BEGINNING = 300  # characters of a Spanish lead, so that a record is about one sequence
CLUSTERS = 16


@dataclass(frozen=True)
class Topic:
    """Records to learn from and held-out ones."""

    train: list[str]
    heldout: list[str]


def public() -> tuple[list[str], dict[str, Topic]]:
    """Return English leads without one cluster, and two public topics that an anchor of these leads never saw.

    The cluster is near to what the anchor knows. The beginnings of Spanish leads are far from it.
    """
    texts = leads("en-us")
    vectors = StaticEmbedder().embed(texts)
    leaf_N = route(train_tree(vectors, branching=CLUSTERS, levels=1, seed=0), vectors)[:, -1]
    away = leaf_N == leaf_N[0]
    near = [text for text, gone in zip(texts, away, strict=True) if gone]
    far = [text[:BEGINNING] for text in leads("es-es")]
    return [t for t, gone in zip(texts, away, strict=True) if not gone], {
        "near": _dealt(near, 0),
        "far": _dealt(far, 0),
    }


def generated(topic: str, seed: int, records: int) -> Topic:
    """Return a topic of `quickstart`: "health", "finance" or "notes"."""
    make: Callable[..., list[SourceRecord]] = patients.generate
    count = records + HELDOUT
    found = make(count, seed=seed) if topic == "health" else persons.generate(topic, count, seed=seed)
    return _dealt([record.text for record in found][:count], seed)


def clinical(path: Path, seed: int) -> Topic:
    """Return the notes of a JSONL file (gzip), field `note`. Raise UsageError if there are none."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        notes = dict.fromkeys(json.loads(line).get("note", "") for line in lines)
    texts = [note for note in notes if len(note) >= SHORTEST]
    if len(texts) <= HELDOUT:
        raise UsageError(f"{path.name} holds {len(texts)} notes; give a file with more than {HELDOUT}.")
    return _dealt(texts, seed)


def _dealt(texts: list[str], seed: int) -> Topic:
    order = np.random.default_rng(seed).permutation(len(texts))
    return Topic([texts[n] for n in order[HELDOUT:]], [texts[n] for n in order[:HELDOUT]])
