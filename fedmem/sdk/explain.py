"""The placement of a text: the decision of the policy, its rule, and the path in a release.

Invariants
- The result contains a placement, a topic, a rule's name and cluster ids, and no part of the text.
- Nothing is stored and nothing is sent.

>>> explain("We signed the lease for the flat.").placement in ("shared", "private")
True
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fedmem.policy.policy import Policy
from fedmem.routing.router import route

__all__ = ["DEFAULT_POLICY", "Explanation", "explain"]
DEFAULT_POLICY = "default"


@dataclass(frozen=True)
class Explanation:
    """The placement of a text.

    Attributes:
        placement: Shared or private.
        topic: Topic of a private text, else None.
        rule: Name of the rule that decided.
        policy: Name or file of the policy.
        release: Digest of the release, if one was given.
        path: Cluster ids in the release's tree, if one was given.
    """

    placement: Literal["shared", "private"]
    topic: str | None
    rule: str
    policy: str
    release: str | None = None
    path: tuple[int, ...] | None = None


def explain(
    text: str, *, policy: str | Path = DEFAULT_POLICY, release: Path | None = None, topic: str | None = None
) -> Explanation:
    """Explain the placement of a text.

    Args:
        text: The text. It is not stored.
        policy: Name of a policy, or its TOML file.
        release: Folder of a release, to get the path in its tree.
        topic: Topic that an app declares for the text. It can only tighten the placement.

    Raises:
        UsageError: The policy is not valid, or the topic is unknown.
        FedmemError: Any error of `Release.load`.
    """
    decision = Policy.load(policy).place(text, declared=topic)
    explanation = Explanation(decision.placement, decision.topic, decision.rule, str(policy))
    if release is None:
        return explanation
    from fedmem.training.release import Release

    loaded = Release.load(release)
    path = tuple(int(node) for node in route(loaded.tree, loaded.embedder.embed([text]))[0])
    return replace(explanation, release=loaded.digest, path=path)
