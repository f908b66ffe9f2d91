"""Scenarios: what is known, what is refused, and with which sentence."""

import pytest

from fedmem.errors import UsageError
from fedmem.sim import scenario

GOOD = scenario.folder() / "quickstart.toml"


def changed(tmp_path, old, new):
    path = tmp_path / "changed.toml"
    text = GOOD.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", scenario.known())
def test_every_scenario_loads_and_round_trips(name):
    chosen = scenario.load(name)
    assert chosen.name == name
    assert scenario.from_dict(chosen.to_dict()) == chosen


def test_quickstart_says_why_it_has_no_noise_and_crowd_has_noise():
    assert scenario.load("quickstart").federation.unsafe_no_dp
    assert "eight devices" in scenario.load("quickstart").federation.unsafe_reason
    crowd = scenario.load("crowd").federation
    assert crowd.noise_multiplier > 0
    assert not crowd.unsafe_no_dp


def test_an_unknown_scenario_names_the_known_ones():
    with pytest.raises(UsageError, match="crowd, quickstart"):
        scenario.load("nothing")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seed = 7", 'seed = "7"', "seed must be of type int"),
        ("seed = 7", "seed = 7\nsede = 8", "'sede' that no scenario knows"),
        ("branching = 3\n", "", "branching"),
        ("devices = [0, 1]", "devices = [0, 99]", "device that does not exist"),
        ("unsafe_no_dp = true", "unsafe_no_dp = false", "unsafe_no_dp = true"),
        ("[bank]", "[bank", "not valid TOML"),
        ('"level-1"', '"levle-1"', "federation.parts"),
        ("releases = 2", "releases = 0", "start at 1"),
        ("record_cap = 1000", "record_cap = 100", "record_cap"),
        ("unsafe_no_dp", "noise_multiplier = 1.0\nunsafe_no_dp", "contradicts itself"),
    ],
)
def test_a_wrong_scenario_is_refused_by_name(tmp_path, old, new, said):
    with pytest.raises(UsageError, match=said):
        scenario.load(changed(tmp_path, old, new))
