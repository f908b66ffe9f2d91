"""Arms, faults and measured rounds of the federated phases follow from the scenario."""

from dataclasses import replace as with_fields
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from msgspec.structs import replace

from fedmem.errors import FedmemError
from fedmem.federation.device import TrainConfig
from fedmem.sim import scenario
from fedmem.sim.context import Simulation
from fedmem.sim.phases import federated
from fedmem.sim.phases.central import CURVE_POINTS
from fedmem.sim.phases.federated import make_local_train
from fedmem.training.settings import Settings
from tests.sim.small import small_scenario


def test_a_device_trains_by_the_scenario_at_the_rate_that_its_round_has_left():
    seen = []
    part = SimpleNamespace(train=lambda params, packed, paths, settings, seed: seen.append((settings, seed)))
    quick = scenario.load("quickstart")
    f = replace(quick.federation, rounds=2, releases=1, final=0.1, warmup=3, eps=1e-3)
    train = make_local_train(part, replace(quick, federation=f), [1, 2], None)
    train({}, TrainConfig(2, seed=5, steps=4, batch=2, learning_rate=1.0, memory_learning_rate=2.0))
    assert seen == [(Settings(4, 2, 0.1, final=1.0, warmup=3, memory_lr=0.2, eps=1e-3), 5)]


UNSAFE = {"unsafe_no_dp": False, "unsafe_reason": ""}


@pytest.mark.parametrize(
    ("federation", "control", "arms"),
    [
        ({}, True, ("memory", "control")),
        ({}, False, ("memory",)),
        ({"parts": ["generic"]}, True, ("memory",)),
        ({"noise_multiplier": 1.0, **UNSAFE}, True, ("memory",)),
    ],
)
def test_a_control_takes_part_only_where_the_anchor_is_federated_without_noise(
    federation: dict[str, object], control: bool, arms: tuple[str, ...]
) -> None:
    chosen = small_scenario(**federation)
    sim = SimpleNamespace(scenario=replace(chosen, anchor=replace(chosen.anchor, control=control)))
    assert federated.arm_names(sim) == arms


@pytest.mark.parametrize("first", [0, 3, 40])
@pytest.mark.parametrize("count", [0, 1, 5, 6, 7, 11, 12, 13, 100, 499])
def test_measured_rounds_are_few_evenly_spaced_and_end_with_the_last(first: int, count: int) -> None:
    rounds = federated.measured_rounds(first, first + count)
    assert len(rounds) <= 2 * CURVE_POINTS
    assert rounds == sorted(rounds)
    assert all(first < number <= first + count for number in rounds)
    assert rounds[-1:] == ([first + count] if count else [])
    assert len({later - earlier for earlier, later in pairwise(rounds)}) <= 1


def test_a_round_moves_the_federated_parts_of_both_arms_and_nothing_else(started: Simulation) -> None:
    for arm, parts in (("memory", {"anchor", "level-1", "generic"}), ("control", {"anchor"})):
        before, after = (federated.load_arm_at(started, arm, done) for done in (0, 1))
        start, end = before.params(), after.params()
        assert {name.partition(".")[0] for name in start} == parts
        assert any((start[name] != end[name]).any() for name in start)
        if arm == "memory":
            assert before.state is not None
            assert after.state is not None
            assert np.array_equal(before.state.levels[1], after.state.levels[1])


def test_the_facts_of_a_round_are_those_of_its_journal(started: Simulation) -> None:
    facts, journal = started.facts("rounds_1"), federated.open_journal(started, "memory")
    assert facts["wire"] == journal.wire_digest()
    assert [(row["round"], row["counted"], row["aborted"]) for row in facts["traffic"]] == [(1, 3, False)]
    assert [event["round"] for event in journal.ledger.entries()] == [1]
    assert journal.ledger.path == started.folder.root / "ledger.jsonl"
    assert federated.open_journal(started, "control").ledger.path != journal.ledger.path
    assert [point["step"] for point in facts["curve"]] == [1]


def test_a_device_holds_its_shareable_records_only(started: Simulation) -> None:
    records = federated.shareable_records(started)
    assert len(records) == 3
    for placed, (packed, paths_MP) in zip(started.placed, records, strict=True):
        assert len(packed) == len(paths_MP) > 0
        assert len(packed) <= len(started.encode(placed.shareable()))
        assert paths_MP.shape[1] == started.spec.levels


def test_rounds_without_noise_have_an_infinite_epsilon_and_a_reason(started: Simulation) -> None:
    figures = federated.compute_epsilon(started)
    assert figures.readers == float("inf")
    assert "unsafe_no_dp" in figures.reason
    noisy = with_fields(started, scenario=small_scenario(noise_multiplier=4.0, **UNSAFE))
    assert 0 < federated.compute_epsilon(noisy).readers < 5


def test_faults_are_those_of_the_scenario(started: Simulation) -> None:
    sim = with_fields(started, scenario=small_scenario(silent=0.25, hostile=0.34))
    faults = federated.population_faults(sim)
    assert (faults.devices, faults.silent, len(faults.hostile_devices)) == (3, 0.25, 1)
    assert faults == federated.population_faults(sim)


def test_a_failed_device_stops_the_run_with_the_class_of_its_error() -> None:
    federated._check_failures([])
    with pytest.raises(FedmemError, match="MemoryError"):
        federated._check_failures(["MemoryError"])
