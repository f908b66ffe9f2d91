"""People's chats as devices, on invented conversations: nothing of the real text is read here."""

import traceback

import pytest

from fedmem.errors import UsageError
from fedmem.sim.sources import chats
from tests.sim.people import LONG, message, talk


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
    few, many = (chats.deal_people(everyone, devices=n, heldout_share=0.1, seed=3) for n in (4, 16))
    assert few.heldout == many.heldout
    assert many.devices[:4] == few.devices
    held = set(few.heldout)
    assert len(held) == 6
    assert not held & {record for hand in many.devices for record in hand}
    assert all(len({record.split()[14] for record in hand}) == 1 for hand in many.devices)
    assert chats.deal_people(everyone, devices=4, heldout_share=0.1, seed=4).heldout != few.heldout


def test_too_many_devices_are_refused(invented):
    with pytest.raises(UsageError, match="18 people"):
        chats.deal_people(chats.load(), devices=19, heldout_share=0.1, seed=3)
    with pytest.raises(UsageError):
        chats.deal_people(chats.load(), devices=3, heldout_share=0.0, seed=3)


@pytest.mark.parametrize("content", ["{", '{"a": {"start": "x", "messages": [[{"sender": "zebrafinch"}]]}}', "[1]"])
def test_a_damaged_file_is_refused_without_a_word_of_it(invented, content):
    invented.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match="chitchat-dataset==") as found:
        chats.load()
    assert "zebrafinch" not in "".join(traceback.format_exception(found.value))


def test_a_split_does_not_show_its_text(invented):
    assert "invented" not in repr(chats.deal_people(chats.load(), devices=3, heldout_share=0.1, seed=3))
