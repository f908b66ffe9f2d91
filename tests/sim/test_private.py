"""A device with a private record has a vault, and its plan is calibrated to the topic's budget."""

from pathlib import Path

import pytest

from fedmem.errors import NothingMatched
from fedmem.sim.context import Simulation
from fedmem.sim.phases import private
from fedmem.vault.vault import ALL


def test_exactly_the_devices_with_a_private_record_have_a_vault(started: Simulation) -> None:
    devices = private.private_devices(started)
    assert {device for device, _ in started.population.learned} <= set(devices)
    for number, placed in enumerate(started.placed):
        assert (number in devices) == any(decision.placement == "private" for decision in placed.decisions)


def test_blocks_answer_for_the_first_release(started: Simulation) -> None:
    assert private.first_release(started).digest == started.facts("rounds_1")["release"]


@pytest.mark.parametrize("topic", ["finance", "notes"])
def test_noise_is_calibrated_to_the_budget_of_the_topic(
    started: Simulation, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(private, "_calibrated", lambda plan, epsilon: (plan, epsilon))
    chosen, learning = started.policy.topics[topic], started.scenario.learning
    plan, epsilon = private.privacy_plan(started, chosen)  # type: ignore[misc]
    assert (epsilon, plan.noise_multiplier) == (chosen.epsilon, 0.0)
    assert (plan.delta, plan.steps, plan.clip, plan.record_cap) == (
        chosen.delta, learning.steps, learning.clip, learning.record_cap,
    )  # fmt: skip
    assert plan.divisor == learning.sampling_rate * learning.nominal


def test_a_vault_gets_its_private_records_once_and_no_other(
    sim: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))
    release, (device, *_) = private.first_release(sim), private.private_devices(sim)
    with pytest.raises(NothingMatched):
        private.open_vault(sim, device)
    root = sim.folder.vault(device)
    root.mkdir(parents=True)
    (root / "half.db").touch()  # a creation that was cut
    with private._open_or_create(sim, device) as vault:
        private._fill(sim, vault, device, release)
        private._fill(sim, vault, device, release)
        assert vault.simulated
        texts = sorted(record.text for record in vault.records(ALL))
    placed = sim.placed[device]
    pairs = zip(placed.items, placed.decisions, strict=True)
    assert texts == sorted(item.text for item, decision in pairs if decision.placement == "private")
    with private.open_vault(sim, device, write=False) as vault:
        assert len(vault.records(ALL)) == len(texts)
