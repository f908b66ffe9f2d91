"""There are patterns enough, and each uses only fields that a person has."""

from fedmem.sim.sources.phrases import FINANCE, NOTES


def test_there_are_enough_patterns() -> None:
    assert min(len(set(FINANCE)), len(set(NOTES))) >= 25
