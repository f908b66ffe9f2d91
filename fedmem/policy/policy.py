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
- Time and memory are linear in the length of the text.
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
from fedmem.policy.identifiers import Identifiers
from fedmem.policy.rules import AllOf, AnyOf, Folded, Keywords, Patterns, Rule, Verdict, fold
from fedmem.policy.text import check_text
from fedmem.routing.embedder import StaticEmbedder, unit

__all__ = ["Decision", "FederationLimits", "Policy", "Topic"]

Vector = NDArray[np.float32]
Claim = tuple[str, Verdict]  # a topic, and the verdict that claims the record for it
_PASSAGE = 1200  # characters: passages of longer texts are judged too, since the vector of a long text is diluted
# Characters: from here on, passages do not overlap, and only rules that read a vector judge them. Their words are
# judged with the whole text, and its vector is the mean of theirs.
_LONG = 32 * _PASSAGE
_TEXT_RULES = (Keywords, Patterns, Identifiers)


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
    """A unit that the rules judge: a whole text, or a passage of a long one.

    Attributes:
        text: folded.
        vector: of the text before folding.
        is_part: only rules that read the vector judge it, since the others judge the whole text.
    """

    text: Folded
    vector: Vector
    is_part: bool = False


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
            UsageError: no layer has the declared topic, or `check_text` refuses the text.
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
            UsageError: no layer has a declared topic, there are more or fewer declared topics than texts, or
                `check_text` refuses a text.
        """
        for text in texts:
            check_text(text)
        declared_topics = [None] * len(texts) if declared is None else declared
        if any(topic is not None and topic not in self.topics for topic in declared_topics):
            raise UsageError(f"A declared topic is not in the policy. Choose one of {', '.join(self.topics)}.")
        if len(declared_topics) != len(texts):
            raise UsageError("Give one declared topic or None for each text.")
        return [self._decide(topic, text) for text, topic in zip(texts, declared_topics, strict=True)]

    def _decide(self, declared: str | None, text: str) -> Decision:
        """Decide for the declared topic, else the topic with the most evidence (the first on a tie), else shared."""
        if declared is not None:
            return Decision("private", declared, "declared")
        pieces = self._pieces(text)
        claims = [claim for layer in self._layers for piece in pieces for claim in _layer_claims(layer, piece)]
        if not claims:
            return Decision("shared", None, "no rule")
        evidence = {topic: sum(v.strength for t, v in claims if t == topic) for topic in self.topics}
        topic = max(evidence, key=evidence.__getitem__)
        rule = max((v for t, v in claims if t == topic), key=lambda verdict: verdict.strength).rule
        return Decision("private", topic, rule)

    def _pieces(self, text: str) -> list[_Piece]:
        """Return the whole text and, if it is longer than a passage, its passages."""
        is_long = len(text) > _LONG
        parts = [text[start : start + _PASSAGE] for start in _starts(len(text), is_long)]
        vectors_ND = self._embedder.embed(parts if is_long else [*parts, text])
        whole_D = unit(vectors_ND.sum(axis=0, keepdims=True))[0] if is_long else vectors_ND[-1]
        pieces = [_Piece(fold(part), vector_D, is_long) for part, vector_D in zip(parts, vectors_ND, strict=False)]
        return [_Piece(fold(text), whole_D), *pieces]


def _starts(length: int, is_long: bool) -> range:
    """Return the starts of the passages of a text; there are none if it is one passage itself."""
    if is_long:
        return range(0, length, _PASSAGE)
    return range(0, length - _PASSAGE // 2, _PASSAGE // 2) if length > _PASSAGE else range(0)


def _layer_claims(layer: Layer, piece: _Piece) -> list[Claim]:
    """Return every claim of one layer on one passage."""
    rules = ((topic, rule) for topic, rules in layer.rules.items() for rule in rules)
    judges = ((topic, rule) for topic, rule in rules if not piece.is_part or _reads_vector(rule))
    verdicts = ((topic, rule.judge(piece.text, piece.vector)) for topic, rule in judges)
    return [(topic, verdict) for topic, verdict in verdicts if verdict]


def _reads_vector(rule: Rule) -> bool:
    """Return False if the text alone decides, so that a claim on a passage is a claim on the whole text, too."""
    if isinstance(rule, AnyOf | AllOf):
        return any(_reads_vector(one) for one in rule.rules)
    return not isinstance(rule, _TEXT_RULES)


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
