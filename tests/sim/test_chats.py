"""People's chats as devices, on invented conversations: nothing of the real text is read here."""

import json
import traceback

import pytest

from fedmem.errors import UsageError
from fedmem.policy.policy import Policy
from fedmem.sim import population, scenario
from fedmem.sim.sources import chats

LONG = "a sentence of this invented person that is long enough to be a record"


def message(sender, text, minute):
    return {"sender": sender, "text": text, "timestamp": f"2018-01-01T00:{minute:02d}:00"}


def talk(start, *messages):
    return {"start": start, "messages": [[m] for m in messages], "prompt": "none", "ratings": {}}


@pytest.fixture
def invented(tmp_path, monkeypatch):
    """Twenty people in pairs, each pair with three conversations; the person of number n writes n words more."""
    talks = {}
    for pair in range(10):
        one, other = f"p{2 * pair:02d}", f"p{2 * pair + 1:02d}"
        for n in range(3):
            mine, theirs = (f"{LONG} {who} {n} " + "word " * int(who[1:]) for who in (one, other))
            talks[f"t{pair}-{n}"] = talk(f"2018-01-0{n + 1}", message(one, mine, 1), message(other, theirs, 2))
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(talks), encoding="utf-8")
    monkeypatch.setattr(chats, "package_file", lambda *_: path)
    return path


def test_a_record_is_what_one_person_wrote_in_one_conversation_in_order():
    talks = {
        "b": talk("2018-02-01", message("x", f"later {LONG}", 1)),
        "a": talk(
            "2018-01-01", message("x", f"second {LONG}", 9), message("y", LONG, 2), message("x", "  first  \n ", 1)
        ),
    }
    assert chats.group_by_person(talks) == [(f"first\nsecond {LONG}", f"later {LONG}"), (LONG,)]


def test_what_says_nothing_is_no_record():
    assert chats.group_by_person({"a": talk("2018-01-01", message("x", "ok", 1), message("y", "  ", 2))}) == []


def test_people_are_dealt_whole_and_the_held_out_do_not_depend_on_the_devices(invented):
    everyone = chats.load()
    assert len(everyone) == 20
    assert "p19" in everyone[0][0]
    few, many = (chats.deal(everyone, devices=n, heldout_share=0.1, seed=3) for n in (4, 16))
    assert few.heldout == many.heldout
    assert many.devices[:4] == few.devices
    held = set(few.heldout)
    assert len(held) == 6
    assert not held & {record for hand in many.devices for record in hand}
    assert all(len({record.split()[14] for record in hand}) == 1 for hand in many.devices)
    assert chats.deal(everyone, devices=4, heldout_share=0.1, seed=4).heldout != few.heldout


def test_too_many_devices_are_refused(invented):
    with pytest.raises(UsageError, match="18 people"):
        chats.deal(chats.load(), devices=19, heldout_share=0.1, seed=3)
    with pytest.raises(UsageError):
        chats.deal(chats.load(), devices=3, heldout_share=0.0, seed=3)


@pytest.mark.parametrize("content", ["{", '{"a": {"start": "x", "messages": [[{"sender": "zebrafinch"}]]}}', "[1]"])
def test_a_damaged_file_is_refused_without_a_word_of_it(invented, content):
    invented.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match="chitchat-dataset==") as found:
        chats.load()
    assert "zebrafinch" not in "".join(traceback.format_exception(found.value))


def test_a_split_does_not_show_its_text(invented):
    assert "invented" not in repr(chats.deal(chats.load(), devices=3, heldout_share=0.1, seed=3))


def test_a_population_of_people_has_fresh_noise_and_public_text_of_its_own(invented):
    data = scenario.load("chats").to_dict()
    data["public"] |= {"devices": 12, "heldout_share": 0.2, "documents": 400}
    built = population.build(scenario.from_dict(data), 7, None, Policy.load())
    assert not built.generated
    assert len(built.devices) == 12
    assert not set(built.coordinator) & {item.text for items in built.devices for item in items}
    assert chats.ATTRIBUTION in built.attribution
    assert built.learned == []
