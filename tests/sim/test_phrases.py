"""There are patterns enough, and each uses only fields that a person has."""

import re

import pytest

from fedmem.sim.sources import persons
from fedmem.sim.sources.phrases import FINANCE, NOTES


def test_there_are_enough_patterns() -> None:
    assert min(len(set(FINANCE)), len(set(NOTES))) >= 25


@pytest.mark.parametrize("pattern", [*FINANCE, *NOTES])
def test_a_pattern_has_known_fields_and_whole_choices(pattern: str) -> None:
    fields = {name.partition(".")[0] for name in re.findall(r"\{([^}]*)\}", pattern)}
    assert fields <= set(persons._DRAWS)
    choices = re.findall(r"\[([^\]]*)\]", pattern)
    assert all(len(set(choice.split("|"))) == len(choice.split("|")) > 1 for choice in choices)
    rest = re.sub(r"\[[^\[\]]*\]", "", re.sub(r"\{[^{}]*\}", "", pattern))
    assert not set(rest) & set("{}[]|")


def test_no_pattern_stands_twice() -> None:
    assert len({*FINANCE, *NOTES}) == len(FINANCE) + len(NOTES)
