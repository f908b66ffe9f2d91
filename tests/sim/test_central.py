"""The coordinator's phases see its public text only, and with 0 steps they leave the parameters of the start."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from msgspec.structs import replace as changed

from fedmem.anchor.presets import new_anchor
from fedmem.sim import parameters
from fedmem.sim.context import Simulation
from fedmem.sim.phases import central
from fedmem.sim.scenario import Phase
from fedmem.training.bank_state import BankState


def loaded(sim: Simulation, name: str) -> tuple[torch.nn.Module, BankState | None]:
    model = new_anchor(sim.scenario.anchor.preset, sim.vocabulary, 0)
    return model, parameters.load(sim.state(f"{name}.safetensors"), model, sim.spec)


def test_with_no_step_anchor_bank_and_control_are_those_of_the_start(started: Simulation) -> None:
    start = new_anchor(started.scenario.anchor.preset, started.vocabulary, started.derive("anchor"))
    for name in ("pretrained", "control", "cotrained"):
        model, _ = loaded(started, name)
        assert all(torch.equal(*pair) for pair in zip(model.parameters(), start.parameters(), strict=True)), name
    bank, fresh = loaded(started, "cotrained")[1], BankState.new(started.spec, started.derive("bank"))
    assert bank is not None
    assert all(torch.equal(*pair) for pair in zip(bank.levels, fresh.levels, strict=True))
    assert loaded(started, "control")[1] is None


def test_without_a_control_none_is_trained_or_saved(sim: Simulation) -> None:
    sim.state("control.safetensors").unlink()
    sim.scenario = changed(sim.scenario, anchor=changed(sim.scenario.anchor, control=False))
    central.cotrain_phase(sim)
    assert not sim.state("control.safetensors").exists()


def test_placement_counts_every_record_once(started: Simulation) -> None:
    facts = central.count_placements(started)
    assert facts["shared"] + facts["private"] == sum(len(placed.items) for placed in started.placed)
    assert facts["private"] >= sum(bool(item.declared) for placed in started.placed for item in placed.items) == 24
    assert 0 <= facts["topic_agreement"] <= facts["agreement"] <= 1
    assert facts == started.facts("prepare")["placement"]


def test_the_number_of_a_users_private_records_is_not_written(started: Simulation) -> None:
    own = replace(started)
    vars(own).update(population=replace(started.population, generated=False), placed=started.placed)
    assert central.count_placements(own)["private"] is None


def test_only_a_pooled_phase_trains_on_the_devices_text(started: Simulation) -> None:
    coordinator = central.training_texts(started, Phase(0))
    pooled = central.training_texts(started, Phase(0, pooled=True))
    assert coordinator == started.population.coordinator
    assert pooled == [text for placed in started.placed for text in placed.shareable()]
    assert not set(coordinator) & set(pooled)


def test_each_row_has_the_path_of_its_whole_document(started: Simulation) -> None:
    texts = [started.population.coordinator[0] * 6, *started.population.coordinator[1:5]]
    sequences = started.encode(texts)
    paths_NP = central.paths_of(started, texts, sequences)
    assert paths_NP.shape == (len(sequences), 3)
    for document in range(5):
        assert len(np.unique(paths_NP[sequences.document_N == document], axis=0)) == 1
    packed, paths_MP = central.pack_with_paths(started, texts)
    assert len(packed) == len(paths_MP) <= len(paths_NP)
    assert {tuple(path) for path in paths_MP.tolist()} <= {tuple(path) for path in paths_NP.tolist()}


SIX = [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize(("steps", "expected"), [(3, [1, 2, 3]), (12, SIX), (13, SIX)])
def test_a_curve_has_about_six_points(started: Simulation, steps: int, expected: list[int]) -> None:
    reports = []
    watched = replace(started, progress=lambda *report: reports.append(report))
    vars(watched).update(population=replace(started.population, heldout=started.population.heldout[:2]))
    model = new_anchor("nano", started.vocabulary, 0)
    curve = central.Curve(watched, "pretrain", steps, model)
    step = curve.on_step(offset=100)
    for number in range(1, steps + 1):
        step(number, 0.0)
    assert [point["step"] for point in curve.points] == expected
    assert len({point["loss"] for point in curve.points}) == 1
    assert reports[0] == ("pretrain", 101, steps, "")
    assert model.training
