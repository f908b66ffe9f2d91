"""A population is all text of a run, each piece in one place."""

import json
from pathlib import Path

import pytest

from fedmem.policy.policy import Policy
from fedmem.sim import population, scenario
from fedmem.sim.sources import chats, wikipedia
from fedmem.sim.sources.record import SourceRecord
from tests.sim.small import small_scenario


def test_a_population_of_people_has_fresh_noise_and_public_text_of_its_own(invented):
    data = scenario.load("chats").to_dict()
    data["public"] |= {"devices": 12, "heldout_share": 0.2, "documents": 400}
    built = population.build(scenario.from_dict(data), 7, None, Policy.load())
    assert not built.generated
    assert len(built.devices) == 12
    assert not set(built.coordinator) & {item.text for items in built.devices for item in items}
    assert chats.ATTRIBUTION in built.attribution
    assert built.learned == []


def generated(**public: object) -> population.Population:
    data = small_scenario().to_dict()
    data["public"] |= public
    return population.build(scenario.from_dict(data), 7, None, Policy.load())


def test_generated_text_is_divided_without_a_text_in_two_places() -> None:
    built = generated()
    public = [item.text for items in built.devices for item in items if not item.declared]
    private = [item.text for items in built.devices for item in items if item.declared]
    held_out = [text for texts in built.private_heldout.values() for text in texts]
    everything = [*built.coordinator, *built.heldout, *public, *private, *held_out]
    assert len(everything) == len(set(everything))
    assert built.generated
    assert built.learned == [(0, "finance"), (0, "notes"), (1, "notes")]
    assert (len(private), len(held_out)) == (3 * 8, 3 * 3)


def test_records_of_two_devices_with_one_topic_are_of_two_persons() -> None:
    built = generated()
    first, second = ({item.text for item in built.devices[n] if item.declared == "notes"} for n in (0, 1))
    assert not first & second


def test_without_private_topics_no_generator_is_attributed() -> None:
    data = small_scenario().to_dict() | {"private": []}
    built = population.build(scenario.from_dict(data), 7, None, Policy.load())
    assert built.attribution == [wikipedia.ATTRIBUTION]
    assert (built.learned, built.private_heldout, built.generated) == ([], {}, True)


@pytest.mark.parametrize("labels", [(("a", 1), ("a", 2)), (("a", "b"), ("ab",)), (("a",), ()), (("1",), ("1", ""))])
def test_seeds_of_other_labels_differ_and_fit_63_bits(labels: tuple[tuple[object, ...], ...]) -> None:
    first, second = (population.derive_seed(7, *label) for label in labels)
    assert first != second
    assert all(0 <= seed < 2**63 for seed in (first, second))
    assert population.derive_seed(8, *labels[0]) != first


def write_corpus(path: Path, *rows: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_users_private_records_stay_on_their_device_and_a_tenth_is_held_out(tmp_path: Path) -> None:
    public = [{"text": f"The river number {n} passes {n % 7} bridges in its valley."} for n in range(120)]
    private = [{"text": f"note {n}", "topic": "notes", "device": "phone"} for n in range(20)]
    chosen = small_scenario()
    built = population.build(chosen, 7, write_corpus(tmp_path / "a.jsonl", *public, *private), Policy.load())
    device = population._device(SourceRecord("", None, "phone"), 0, 3)
    assert not built.generated
    assert built.learned == [(device, "notes")]
    assert built.private_heldout == {(device, "notes"): ["note 0", "note 10"]}
    declared = [(n, item.text) for n, items in enumerate(built.devices) for item in items if item.declared]
    assert declared == [(device, f"note {n}") for n in range(20) if n % 10]
    shared = [*built.coordinator, *built.heldout, *(i.text for items in built.devices for i in items if not i.declared)]
    assert sorted(shared) == sorted(row["text"] for row in public)


def test_records_that_the_file_marks_are_the_held_out_ones(tmp_path: Path) -> None:
    public = [{"text": f"The river number {n} passes {n % 7} bridges in its valley."} for n in range(120)]
    public[3]["split"] = "heldout"
    private = [{"text": f"note {n}", "topic": "notes", "device": "phone"} for n in range(5)]
    private[4]["split"] = "heldout"
    corpus = write_corpus(tmp_path / "a.jsonl", *public, *private)
    built = population.build(small_scenario(), 7, corpus, Policy.load())
    assert public[3]["text"] in built.heldout
    assert list(built.private_heldout.values()) == [["note 4"]]


def test_a_named_device_is_the_same_wherever_its_record_stands() -> None:
    places = {population._device(SourceRecord("", None, "phone"), number, 5) for number in range(20)}
    assert len(places) == 1
    assert [population._device(SourceRecord("", None), number, 5) for number in range(7)] == [0, 1, 2, 3, 4, 0, 1]
