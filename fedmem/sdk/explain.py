"""Why a text would be placed where it is: the decision of the policy, its rule, and the path in a release.

Invariants
- Nothing of the text is in the answer: a placement, a topic, a rule's name and cluster ids.
- Nothing is stored and nothing is sent.

>>> explain("We signed the lease for the flat.").placement in ("shared", "private")
True
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fedmem.policy.policy import Policy
from fedmem.routing.embedder import StaticEmbedder
from fedmem.routing.router import route

DEFAULT_POLICY = "default"


@dataclass(frozen=True)
class Explanation:
    """Where a text goes, by which rule, and its path where a release was given."""

    placement: Literal["shared", "private"]
    topic: str | None
    rule: str
    policy: str
    release: str | None = None
    path: tuple[int, ...] | None = None


def explain(
    text: str, *, policy: str | Path = DEFAULT_POLICY, release: Path | None = None, topic: str | None = None
) -> Explanation:
    """Explain the placement of `text`, to which `topic` is declared. The errors of the policy and the release pass."""
    embedder = StaticEmbedder()
    vectors_ND = embedder.embed([text])
    decision = Policy.load(policy).place(text, vector=vectors_ND[0], declared=topic)
    found = Explanation(decision.placement, decision.topic, decision.rule, str(policy))
    if release is None:
        return found
    from fedmem.training.release import Release

    opened = Release.load(release).routed_by(embedder.digest)
    path = tuple(int(node) for node in route(opened.tree, vectors_ND)[0])
    return replace(found, release=opened.digest, path=path)
