"""Generated persons are seeded, varied, and the same person in every record."""

import sys

import pytest

from fedmem.errors import UsageError
from fedmem.sim.sources import persons


@pytest.mark.parametrize("topic", ["finance", "notes"])
def test_persons_are_distinct_varied_and_seeded(topic: str) -> None:
    records = persons.generate(topic, 600, seed=7)
    assert len({record.text for record in records}) == 600
    assert {record.topic for record in records} == {topic}
    assert persons.generate(topic, 600, seed=7) == records
    assert not {r.text for r in persons.generate(topic, 600, seed=8)} & {r.text for r in records}
    assert persons.generate(topic, 30, seed=7) == records[:30]
    assert not any(mark in record.text for record in records for mark in "{}[|]")
    assert persons.generate(topic, 0, seed=7) == []


def test_a_person_has_the_same_friends_in_every_record() -> None:
    birthdays = [r.text.split("'s birthday is on ") for r in persons.generate("notes", 600, seed=7)]
    told = {(parts[0].split(". ")[-1], parts[1].split(".")[0]) for parts in birthdays if len(parts) == 2}
    assert 2 <= len(told) == len({name for name, _ in told})


def test_persons_have_no_other_topic() -> None:
    with pytest.raises(UsageError):
        persons.generate("health", 1, seed=1)


def test_missing_faker_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faker", None)
    with pytest.raises(UsageError, match="pip install"):
        persons.generate("notes", 1, seed=1)
