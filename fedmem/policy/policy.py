"""Decide the placement of a record: shared, or private under a topic.

Invariants
- The floor policy of this installation always joins. It judges the text itself with the embedder of this installation.
  So neither a policy file nor a vector from a caller can remove privacy that the floor gives (I3).
- Layers, rules and a declared topic can only tighten. A record is shared only if no rule claims it and no topic is
  declared.
- In doubt a record is private: the floor claims a text that the rules cannot read (empty, or in another language).
- A topic's budget is the smallest that any layer names, and so is the device's budget in federations.
- Plans without noise are joined only where a layer allows them and no layer forbids them.
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
from fedmem.policy.files import (
    GRANULARITIES,
    LIFETIME_EPSILON,
    MAX_DELTA,
    FederationTable,
    Layer,
    Topic,
    parse,
    source,
)
from fedmem.policy.rules import Folded, Verdict, fold
from fedmem.routing.embedder import Embedder, StaticEmbedder

__all__ = ["Decision", "FederationLimits", "Policy", "Topic"]

Vector = NDArray[np.float32]
Claim = tuple[str, Verdict]  # a topic, and the verdict that claims the record for it
_PASSAGE = 1200  # characters: passages of longer texts are judged too, since the vector of a long text is diluted


@dataclass(frozen=True)
class Decision:
    """The placement of a record. `topic` is None if, and only if, it is shared; `rule` may be written to a log."""

    placement: Literal["shared", "private"]
    topic: str | None
    rule: str


@dataclass(frozen=True)
class FederationLimits:
    """The limits of a device in all its federations together.

    Attributes:
        epsilon: the greatest ε of the device over its lifetime, against readers of released anchors; finite, above 0.
        delta: the δ of this ε, in (0, 1e-5].
        allow_no_dp: True if the device may join a federation whose plan adds no noise.
    """

    epsilon: float = LIFETIME_EPSILON
    delta: float = MAX_DELTA
    allow_no_dp: bool = False


@dataclass(frozen=True)
class _EmbeddedLayer:
    """A layer, and the embedder of its seed phrases."""

    layer: Layer
    embedder: Embedder


@dataclass(frozen=True)
class _Piece:
    """A unit that the rules judge: a whole text, or a passage of a long one."""

    row: int
    raw: str
    text: Folded
    whole: bool


class Policy:
    """The floor policy joined with one chosen policy."""

    def __init__(self, layers: Sequence[_EmbeddedLayer], digest: str) -> None:
        """Take the layers, the floor first. Use `Policy.load` instead, which adds the floor."""
        self._layers, self.digest = tuple(layers), digest
        self.name = layers[-1].layer.name
        self.topics: Mapping[str, Topic] = _joined_topics(embedded_layer.layer for embedded_layer in layers)
        self.federation = _joined_limits([embedded_layer.layer.federation for embedded_layer in layers])

    @classmethod
    def load(cls, name_or_path: str | Path = "default", embedder: Embedder | None = None) -> "Policy":
        """Read a policy and join the floor policy to it.

        Args:
            name_or_path: name of a policy, or path of a .toml file.
            embedder: that of the release; None for the static embedder.

        Raises:
            UsageError: a file cannot be read or is not a valid policy; the message names file and key.
        """
        static = StaticEmbedder()
        floor, chosen = source("floor"), source(name_or_path)
        embedder = static if embedder is None or embedder.digest == static.digest else embedder
        layers = (
            _EmbeddedLayer(parse(floor, "The floor policy", static), static),
            _EmbeddedLayer(parse(chosen, f"The policy {Path(name_or_path).name}", embedder), embedder),
        )
        parts = (floor, chosen, static.digest.encode(), embedder.digest.encode())
        return cls(layers, hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest())

    def place(self, text: str, vector: Vector | None = None, declared: str | None = None) -> Decision:
        """Return the decision for one text.

        Args:
            text: the record's text.
            vector: `[dim]`, the text's vector by the release's embedder; None to compute it.
            declared: the private topic that the owner declares, or None.

        Raises:
            UsageError: no layer has the declared topic, or the vector has another shape.
        """
        return self.place_many([text], None if vector is None else vector[None, :], [declared])[0]

    def place_many(
        self, texts: Sequence[str], vectors: Vector | None = None, declared: Sequence[str | None] | None = None
    ) -> list[Decision]:
        """Return the decision for each text.

        Guarantees:
            A declared topic can only tighten. The floor policy judges vectors that it computed itself, never the ones
            that are handed in (I3). If an error is raised, no text is placed.

        Args:
            texts: the texts of N records.
            vectors: `[N, dim]`, the vectors of the texts by the release's embedder; None to compute them.
            declared: for each text the private topic that its owner declares, or None.

        Raises:
            UsageError: no layer has a declared topic, or vectors and declared topics do not match the texts.
        """
        declared_topics = [None] * len(texts) if declared is None else declared
        if any(topic is not None and topic not in self.topics for topic in declared_topics):
            raise UsageError(f"A declared topic is not in the policy. Choose one of {', '.join(self.topics)}.")
        shape = (len(texts), self._layers[-1].embedder.dim)
        if len(declared_topics) != len(texts) or (vectors is not None and vectors.shape != shape):
            raise UsageError("Give one vector of the policy's embedder, and one declared topic or None, for each text.")
        pieces = [piece for row, text in enumerate(texts) for piece in _pieces(row, text)]
        claims = self._claims(pieces, vectors)
        return [self._decide(topic, claims[row]) for row, topic in enumerate(declared_topics)]

    def _decide(self, declared: str | None, claims: list[Claim]) -> Decision:
        """Decide for the declared topic, else the topic with the most evidence (the first on a tie), else shared."""
        if declared is not None:
            return Decision("private", declared, "declared")
        if not claims:
            return Decision("shared", None, "no rule")
        evidence = {topic: sum(v.strength for t, v in claims if t == topic) for topic in self.topics}
        topic = max(evidence, key=evidence.__getitem__)
        rule = max((v for t, v in claims if t == topic), key=lambda verdict: verdict.strength).rule
        return Decision("private", topic, rule)

    def _claims(self, pieces: Sequence[_Piece], text_vectors: Vector | None) -> dict[int, list[Claim]]:
        """Return for each text the claims of every layer on every passage."""
        claims: dict[int, list[Claim]] = {}
        floor = self._layers[0].embedder
        floor_vectors = floor.embed([piece.raw for piece in pieces])
        for embedded_layer in self._layers:
            is_floor = embedded_layer.embedder is floor
            vectors = floor_vectors if is_floor else _vectors(embedded_layer.embedder, pieces, text_vectors)
            for piece, vector in zip(pieces, vectors, strict=True):
                claims.setdefault(piece.row, []).extend(_layer_claims(embedded_layer.layer, piece.text, vector))
        return claims


def _layer_claims(layer: Layer, text: Folded, vector: Vector) -> list[Claim]:
    """Return every claim of one layer on one passage."""
    verdicts = ((topic, rule.judge(text, vector)) for topic, rules in layer.rules.items() for rule in rules)
    return [(topic, verdict) for topic, verdict in verdicts if verdict]


def _vectors(embedder: Embedder, pieces: Sequence[_Piece], text_vectors: Vector | None) -> Vector:
    """Return the vectors of `pieces` by a release's embedder. Whole texts take the caller's vectors, if any."""
    if text_vectors is None or not pieces:
        return embedder.embed([piece.raw for piece in pieces])
    passages = [piece.raw for piece in pieces if not piece.whole]
    passage_vectors = iter(embedder.embed(passages) if passages else ())
    return np.stack([text_vectors[piece.row] if piece.whole else next(passage_vectors) for piece in pieces])


def _pieces(row: int, text: str) -> list[_Piece]:
    """Return the whole text and, if it is long, its passages. Each passage overlaps the next by half."""
    starts = range(0, len(text) - _PASSAGE // 2, _PASSAGE // 2) if len(text) > _PASSAGE else ()
    parts = [(text, True), *((text[at : at + _PASSAGE], False) for at in starts)]
    return [_Piece(row, part, fold(part), whole) for part, whole in parts]


def _joined_topics(layers: Iterable[Layer]) -> dict[str, Topic]:
    """Return the topics of all layers by name, each with the smallest budget and finest granularity of any layer."""
    topics: dict[str, Topic] = {}
    for topic in (topic for layer in layers for topic in layer.topics.values()):
        prior = topics.get(topic.name, topic)
        finest = max(prior.granularity, topic.granularity, key=GRANULARITIES.index)
        topics[topic.name] = Topic(topic.name, min(prior.epsilon, topic.epsilon), min(prior.delta, topic.delta), finest)
    return topics


def _joined_limits(tables: Sequence[FederationTable]) -> FederationLimits:
    """Return the smallest ε and δ of any layer. One layer that forbids plans without noise outweighs all others."""
    consents = {table.allow_no_dp for table in tables}
    epsilon, delta = min(table.epsilon for table in tables), min(table.delta for table in tables)
    return FederationLimits(epsilon, delta, True in consents and False not in consents)
