"""Decide the placement of a record: shared, or private under a topic.

Invariants
- The floor policy of this installation always joins. So no policy file can remove privacy that the floor gives (I3).
- Every policy judges the text itself, with the static embedder, whatever embedder a release has. So neither a release
  nor a caller can change a placement by its vectors.
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
    parse_policy,
    read_policy,
)
from fedmem.policy.rules import Folded, Verdict, fold
from fedmem.routing.embedder import StaticEmbedder

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
class _Piece:
    """A unit that the rules judge: a whole text, or a passage of a long one."""

    row: int
    raw: str
    text: Folded


class Policy:
    """The floor policy joined with one chosen policy."""

    def __init__(self, layers: Sequence[Layer], digest: str) -> None:
        """Take the layers. Use `Policy.load` instead, which adds the floor.

        Args:
            layers: the floor first, the chosen policy last.
            digest: of the policy files and the embedder, in hex.
        """
        self._layers, self.digest = tuple(layers), digest
        self.name = layers[-1].name
        self.topics: Mapping[str, Topic] = _joined_topics(layers)
        self.federation = _joined_limits([layer.federation for layer in layers])
        self._embedder = StaticEmbedder()

    @classmethod
    def load(cls, name_or_path: str | Path = "default") -> "Policy":
        """Read a policy and join the floor policy to it.

        Args:
            name_or_path: name of a policy, or path of a .toml file.

        Raises:
            UsageError: a file cannot be read or is not a valid policy; the message names file and key.
        """
        static = StaticEmbedder()
        floor, chosen = read_policy("floor"), read_policy(name_or_path)
        layers = (
            parse_policy(floor, "The floor policy", static),
            parse_policy(chosen, f"The policy {Path(name_or_path).name}", static),
        )
        parts = (floor, chosen, static.digest.encode(), static.digest.encode())  # a digest for each file's embedder
        return cls(layers, hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest())

    def place(self, text: str, declared: str | None = None) -> Decision:
        """Return the decision for one text.

        Args:
            text: the record's text.
            declared: the private topic that the owner declares, or None.

        Raises:
            UsageError: no layer has the declared topic.
        """
        return self.place_many([text], [declared])[0]

    def place_many(self, texts: Sequence[str], declared: Sequence[str | None] | None = None) -> list[Decision]:
        """Return the decision for each text.

        Guarantees:
            A declared topic can only tighten (I3). If an error is raised, no text is placed.

        Args:
            texts: the texts of N records.
            declared: for each text the private topic that its owner declares, or None.

        Raises:
            UsageError: no layer has a declared topic, or there are more or fewer declared topics than texts.
        """
        declared_topics = [None] * len(texts) if declared is None else declared
        if any(topic is not None and topic not in self.topics for topic in declared_topics):
            raise UsageError(f"A declared topic is not in the policy. Choose one of {', '.join(self.topics)}.")
        if len(declared_topics) != len(texts):
            raise UsageError("Give one declared topic or None for each text.")
        pieces = [piece for row, text in enumerate(texts) for piece in _pieces(row, text)]
        claims = self._claims(pieces)
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

    def _claims(self, pieces: Sequence[_Piece]) -> dict[int, list[Claim]]:
        """Return for each text the claims of every layer on every passage."""
        claims: dict[int, list[Claim]] = {}
        vectors_ND = self._embedder.embed([piece.raw for piece in pieces])
        for layer in self._layers:
            for piece, vector_D in zip(pieces, vectors_ND, strict=True):
                claims.setdefault(piece.row, []).extend(_layer_claims(layer, piece.text, vector_D))
        return claims


def _layer_claims(layer: Layer, text: Folded, vector: Vector) -> list[Claim]:
    """Return every claim of one layer on one passage."""
    verdicts = ((topic, rule.judge(text, vector)) for topic, rules in layer.rules.items() for rule in rules)
    return [(topic, verdict) for topic, verdict in verdicts if verdict]


def _pieces(row: int, text: str) -> list[_Piece]:
    """Return the whole text and, if it is long, its passages. Each passage overlaps the next by half."""
    starts = range(0, len(text) - _PASSAGE // 2, _PASSAGE // 2) if len(text) > _PASSAGE else ()
    parts = [text, *(text[at : at + _PASSAGE] for at in starts)]
    return [_Piece(row, part, fold(part)) for part in parts]


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
