"""A scenario that would fail after its training is refused before it."""

import contextlib
import re

import pytest
from msgspec.structs import replace

from fedmem.errors import UsageError
from fedmem.sim import contradictions, scenario
from fedmem.sim.run import run_scenario
from tests.sim.small import small_scenario


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("epsilon_max", "trim = 0.1\nepsilon_max", "does not bound a trimmed mean"),
        ("epsilon_max = 10.0", "epsilon_max = 0.5", "exceed epsilon_max"),
    ],
)
def test_noisy_terms_that_contradict_themselves_are_refused_before_any_training(tmp_path, old, new, said):
    text = (scenario.scenarios_folder() / "thousand.toml").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "changed.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UsageError, match=said):
        scenario.load(str(path))


@pytest.mark.parametrize("cohort", ["", "cohort_size = 64\n"])
def test_a_trimmed_mean_over_too_many_devices_is_refused_before_any_training(tmp_path, cohort):
    text = (scenario.scenarios_folder() / "quickstart.toml").read_text(encoding="utf-8")
    path = tmp_path / "changed.toml"
    many = re.sub(r"(?m)^devices = \d+$", "devices = 65", text, count=1)
    path.write_text(many.replace("unsafe_no_dp", f"trim = 0.1\n{cohort}unsafe_no_dp", 1), encoding="utf-8")
    with contextlib.nullcontext() if cohort else pytest.raises(UsageError, match="at most 64 devices"):
        assert scenario.load(str(path)).federation.trim == 0.1


def test_a_scenario_that_was_put_together_in_code_is_checked_before_it_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path))
    monkeypatch.delenv("FEDMEM_RUNS", raising=False)
    chosen = scenario.load("quickstart")
    bare = replace(chosen, federation=replace(chosen.federation, unsafe_no_dp=False, unsafe_reason=""))
    with pytest.raises(UsageError, match="unsafe_no_dp"):
        run_scenario(bare, corpus=None, seed=None, fresh=False, name="bare", progress=print)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("name", scenario.scenario_names())
def test_the_scenarios_that_come_with_fedmem_contradict_themselves_nowhere(name: str) -> None:
    contradictions.check_scenario(scenario.load(name))


BROKEN = {
    "silent and hostile": {"silent": 0.51, "hostile": 0.5},
    "two ways to draw": {"cohort_size": 2, "sampling_rate": 0.5},
    "larger than the number": {"cohort_size": 4},
    "epsilon_max needs": {"epsilon_max": 1.0},
    "federation.parts": {"parts": ["anchor", "level-4"]},
    "give unsafe_reason": {"unsafe_reason": "  "},
}


@pytest.mark.parametrize(("fault", "change"), BROKEN.items(), ids=BROKEN.keys())
def test_a_contradiction_is_named_with_its_scenario(fault: str, change: dict[str, object]) -> None:
    chosen = small_scenario()
    with pytest.raises(UsageError, match=f"^mini: .*{fault}"):
        contradictions.check_scenario(replace(chosen, federation=replace(chosen.federation, **change)))


def test_the_edges_of_the_ranges_are_allowed() -> None:
    small_scenario(silent=0.5, hostile=0.5)
    small_scenario(cohort_size=3)
    small_scenario(parts=["level-1", "level-3", "generic"])
