"""Placement: shared, or private under a topic.

Invariants
- The floor policy of this installation always joins, judged with this installation's own embedder on the text itself:
  neither a policy file nor a vector that a caller hands in can remove privacy that the floor gives (I3).
- Layers, rules and a declared topic only tighten: a record is shared where nobody at all claims it.
- In doubt private: a text that the rules cannot read (empty, or not in their language) is claimed by the floor.
- A topic's budget is the smallest that any layer names.
- A decision names the rule that decided and no part of the text.

>>> Policy.load("default").place("My password for the bank is tulip-42.").placement
'private'
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmem.errors import UsageError
from fedmem.policy.files import GRANULARITIES, Layer, Topic, parse, source
from fedmem.policy.rules import Folded, Verdict, fold
from fedmem.routing.embedder import Embedder, StaticEmbedder

__all__ = ["Decision", "Policy", "Topic"]

Vector = NDArray[np.float32]
Claim = tuple[str, Verdict]  # topic, and the verdict that claims the record for it
_PASSAGE = 1200  # characters: longer texts are judged passage by passage too, lest length dilute a vector


@dataclass(frozen=True)
class Decision:
    """Where a record goes. `topic` is None exactly where placement is shared; `rule` is fit for a log."""

    placement: Literal["shared", "private"]
    topic: str | None
    rule: str


@dataclass(frozen=True)
class _Voice:
    """A layer with the embedder that its seed phrases were embedded with."""

    layer: Layer
    embedder: Embedder


@dataclass(frozen=True)
class _Piece:
    """What is judged at once: a whole text, or a passage of a long one."""

    row: int
    raw: str
    text: Folded
    whole: bool


class Policy:
    """The floor and one chosen policy, joined."""

    def __init__(self, voices: Sequence[_Voice], digest: str) -> None:
        """Use `Policy.load`: the first voice must be the floor."""
        self._voices, self.digest = tuple(voices), digest
        self.name = voices[-1].layer.name
        self.topics: Mapping[str, Topic] = _joined(voice.layer for voice in voices)

    @classmethod
    def load(cls, name_or_path: str | Path = "default", embedder: Embedder | None = None) -> "Policy":
        """Read a policy by name or path and join the floor to it; `embedder` is the release's (default: static).

        Raises UsageError that names file and key where a file does not parse.
        """
        own = StaticEmbedder()
        floor, chosen = source("floor"), source(name_or_path)
        embedder = own if embedder is None or embedder.digest == own.digest else embedder
        voices = (
            _Voice(parse(floor, "The floor policy", own), own),
            _Voice(parse(chosen, f"The policy {Path(name_or_path).name}", embedder), embedder),
        )
        parts = (floor, chosen, own.digest.encode(), embedder.digest.encode())
        return cls(voices, hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest())

    def place(self, text: str, vector: Vector | None = None, declared: str | None = None) -> Decision:
        """Decide for one text; see `place_many`."""
        return self.place_many([text], None if vector is None else vector[None, :], [declared])[0]

    def place_many(
        self, texts: Sequence[str], vectors: Vector | None = None, declared: Sequence[str | None] | None = None
    ) -> list[Decision]:
        """Decide for each text; `vectors` [N, dim] of the release's embedder may be given to spare its work.

        `declared` names, per text, the private topic that its owner declares, or None; it can only tighten.
        Raises UsageError on a declared topic that no layer knows: nothing is placed then.
        """
        wanted = [None] * len(texts) if declared is None else declared
        if any(topic is not None and topic not in self.topics for topic in wanted):
            raise UsageError(f"A declared topic is not in the policy; known are {', '.join(self.topics)}.")
        shape = (len(texts), self._voices[-1].embedder.dim)
        if len(wanted) != len(texts) or (vectors is not None and vectors.shape != shape):
            raise UsageError("Give one vector of the policy's embedder, and one declared topic or None, for each text.")
        pieces = [piece for row, text in enumerate(texts) for piece in _pieces(row, text)]
        claims = self._claims(pieces, vectors)
        return [self._decide(topic, claims[row]) for row, topic in enumerate(wanted)]

    def _decide(self, declared: str | None, claims: list[Claim]) -> Decision:
        """The declared topic, else the one with the most evidence (the policy's first on a tie), else shared."""
        if declared is not None:
            return Decision("private", declared, "declared")
        if not claims:
            return Decision("shared", None, "no rule")
        evidence = {topic: sum(v.strength for t, v in claims if t == topic) for topic in self.topics}
        topic = max(evidence, key=evidence.__getitem__)
        rule = max((v for t, v in claims if t == topic), key=lambda verdict: verdict.strength).rule
        return Decision("private", topic, rule)

    def _claims(self, pieces: Sequence[_Piece], given: Vector | None) -> dict[int, list[Claim]]:
        """Per text, the claims of every layer on every passage."""
        found: dict[int, list[Claim]] = {}
        floor, own = self._voices[0], self._voices[0].embedder.embed([piece.raw for piece in pieces])
        for voice in self._voices:
            vectors = own if voice.embedder is floor.embedder else _vectors(voice.embedder, pieces, given)
            for piece, vector in zip(pieces, vectors, strict=True):
                found.setdefault(piece.row, []).extend(_hear(voice.layer, piece.text, vector))
        return found


def _hear(layer: Layer, text: Folded, vector: Vector) -> list[Claim]:
    """Every claim of one layer on one passage."""
    verdicts = ((topic, rule.judge(text, vector)) for topic, rules in layer.rules.items() for rule in rules)
    return [(topic, verdict) for topic, verdict in verdicts if verdict]


def _vectors(embedder: Embedder, pieces: Sequence[_Piece], given: Vector | None) -> Vector:
    """Vectors of `pieces` by a release's embedder; whole texts take the given ones."""
    if given is None or not pieces:
        return embedder.embed([piece.raw for piece in pieces])
    parts = [piece.raw for piece in pieces if not piece.whole]
    rest = iter(embedder.embed(parts) if parts else ())
    return np.stack([given[piece.row] if piece.whole else next(rest) for piece in pieces])


def _pieces(row: int, text: str) -> list[_Piece]:
    """The whole text and, where it is long, its passages: half of each overlaps the next."""
    starts = range(0, len(text) - _PASSAGE // 2, _PASSAGE // 2) if len(text) > _PASSAGE else ()
    parts = [(text, True), *((text[at : at + _PASSAGE], False) for at in starts)]
    return [_Piece(row, part, fold(part), whole) for part, whole in parts]


def _joined(layers: Iterable[Layer]) -> dict[str, Topic]:
    """Topics of all layers, by name, each with the smallest budget and the finest granularity that any names."""
    topics: dict[str, Topic] = {}
    for topic in (topic for layer in layers for topic in layer.topics.values()):
        known = topics.get(topic.name, topic)
        finest = max(known.granularity, topic.granularity, key=GRANULARITIES.index)
        topics[topic.name] = Topic(topic.name, min(known.epsilon, topic.epsilon), min(known.delta, topic.delta), finest)
    return topics
