"""The placement of a text: decision, rule and path, and no part of the text."""

from dataclasses import asdict

import pytest

from fedmem.errors import NothingMatched, UsageError
from fedmem.routing.router import route
from fedmem.sdk.explain import explain
from fedmem.training.release import Release

PRIVATE = "quokka-8812 my doctor prescribed tablets for my blood pressure and the diagnosis came back"
PUBLIC = "The museum of the town opens at ten and shows old maps."


def test_a_private_text_has_topic_and_rule_and_is_not_quoted() -> None:
    explanation = explain(PRIVATE)
    assert (explanation.placement, explanation.topic) == ("private", "health")
    assert explanation.rule
    assert (explanation.release, explanation.path) == (None, None)
    assert "quokka" not in repr(asdict(explanation))


def test_a_declared_topic_only_tightens() -> None:
    assert explain(PUBLIC).placement == "shared"
    assert (explain(PUBLIC, topic="health").placement, explain(PUBLIC, topic="health").topic) == ("private", "health")
    assert explain(PRIVATE, topic="notes").placement == "private"


def test_with_a_release_the_path_is_that_of_the_router(release: Release) -> None:
    explanation = explain(PUBLIC, release=release.root)
    assert explanation.release == release.digest
    assert explanation.path == tuple(route(release.tree, release.embedder.embed([PUBLIC]))[0])


def test_unknown_names_are_refused(home) -> None:
    for options in ({"topic": "no-such"}, {"policy": "no-such"}):
        with pytest.raises(UsageError):
            explain(PUBLIC, **options)
    with pytest.raises(NothingMatched):
        explain(PUBLIC, release=home / "no-such")
