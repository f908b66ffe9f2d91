"""The public terms file: what it holds, and what is said where it is wrong."""

from dataclasses import replace
from pathlib import Path

import pytest

from fedmem.errors import FedmemError, NothingMatched, Refused, UsageError
from fedmem.federation.terms import Agreement, LocalSettings, rate_left

TEXT = """
release = "abc"
parts = ["anchor", "level-1"]

[plan]
population = 3
rounds = 4
clip = 2
unsafe_no_dp = true
unsafe_reason = "a test"
run = "r-1"

[rounds]
steps = 30
first_steps = 10
learning_rate = 1e-3

[local]
length = 48
final = 0
"""


def load(tmp_path: Path, text: str) -> Agreement:
    (tmp_path / "terms.toml").write_text(text)
    return Agreement.load(tmp_path / "terms.toml")


def test_a_terms_file_is_read_whole(tmp_path: Path) -> None:
    terms = load(tmp_path, TEXT)
    assert (terms.release, terms.parts, terms.plan.run, terms.plan.clip) == ("abc", ("anchor", "level-1"), "r-1", 2)
    assert terms.steps_by_round == (10, 20, 30, 30)
    assert terms.local == LocalSettings(48, final=0)
    assert Agreement.from_dict(terms.to_dict()) == terms
    assert [rate_left(terms.steps_by_round, 0.0, number) for number in (1, 4)] == [1, 0]


WRONG: dict[str, tuple[str, str, type[FedmemError], str]] = {
    "no toml": ("[plan]", "[plan", UsageError, "not valid TOML"),
    "an unknown key": ("clip = 2", "clip = 2\nnosie = 1.0", UsageError, "nosie"),
    "an unknown section": ("[local]", "[more]\nx = 1\n[local]", UsageError, "more"),
    "no section": ("[local]\nlength = 48\nfinal = 0", "", UsageError, r"\[local\]"),
    "no release": ('release = "abc"', "", UsageError, "release"),
    "an empty release": ('release = "abc"', 'release = ""', UsageError, "release"),
    "parts as text": ('["anchor", "level-1"]', '"anchor"', UsageError, "parts"),
    "a missing key": ("population = 3", "", UsageError, "population"),
    "text for a number": ("clip = 2", 'clip = "2"', UsageError, "clip"),
    "a bool for a number": ("population = 3", "population = true", UsageError, "population"),
    "a float for a whole number": ("rounds = 4", "rounds = 4.5", UsageError, "rounds"),
    "a length of one": ("length = 48", "length = 1", UsageError, "local"),
    "no noise and no reason": ("unsafe_no_dp = true", "unsafe_no_dp = false", Refused, "adds no noise"),
}


@pytest.mark.parametrize(("old", "new", "error", "words"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_in_it_is_named(tmp_path: Path, old: str, new: str, error: type[Exception], words: str) -> None:
    assert old in TEXT
    with pytest.raises(error, match=words):
        load(tmp_path, TEXT.replace(old, new))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NothingMatched):
        Agreement.load(tmp_path / "terms.toml")


def test_the_budget_of_a_plan_travels_through_its_dict(tmp_path: Path) -> None:
    noisy = TEXT.replace("unsafe_no_dp = true", "noise_multiplier = 1.0\nepsilon_max = 3\nsampling_rate = 0.5")
    terms = load(tmp_path, noisy.replace('unsafe_reason = "a test"', ""))
    assert Agreement.from_dict(terms.to_dict()).plan.digest() == terms.plan.digest()
    assert replace(terms.plan, epsilon_max=None).digest() != terms.plan.digest()
