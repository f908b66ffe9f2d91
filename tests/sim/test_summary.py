"""The digest of a run covers its parameters, ledger and messages; its figures are those of its phases."""

import json
from dataclasses import replace
from typing import Any

import pytest

from fedmem.sim import summary
from fedmem.sim.context import Simulation
from fedmem.sim.phases.federated import open_journal


def test_a_digest_repeats_and_needs_no_clock(sim: Simulation, started: Simulation) -> None:
    facts = sim.folder.facts()
    digest = summary.run_digest(sim, facts)
    assert digest == summary.run_digest(started, facts)
    slow = {phase: results | {"seconds": 99.0} for phase, results in facts.items()}
    assert summary.run_digest(sim, slow) == digest


@pytest.mark.parametrize("name", ["pretrained.safetensors", "control.safetensors", "tokenizer.json"])
def test_a_changed_file_changes_the_digest(sim: Simulation, name: str) -> None:
    before = summary.run_digest(sim, sim.folder.facts())
    path = sim.state(name)
    path.write_bytes(path.read_bytes() + b" ")
    assert summary.run_digest(sim, sim.folder.facts()) != before


def test_another_seed_release_or_spend_changes_the_digest(sim: Simulation) -> None:
    facts = sim.folder.facts()
    digests = {summary.run_digest(sim, facts)}
    other = replace(sim, seed=8)
    vars(other).update(population=sim.population)
    digests.add(summary.run_digest(other, facts))
    digests.add(summary.run_digest(sim, facts | {"rounds_1": facts["rounds_1"] | {"release": "0" * 64}}))
    open_journal(sim, "memory").ledger.append({"kind": "device-round", "round": 2})
    digests.add(summary.run_digest(sim, facts))
    assert len(digests) == 4


def test_traffic_is_for_a_counted_answer_and_compared_with_an_exchange_at_each_step(started: Simulation) -> None:
    facts = started.folder.facts()
    (row,) = facts["rounds_1"]["traffic"]
    figures = summary._bytes(started, facts)
    assert figures["per_device_round"] == (row["up"] + row["down"]) // 3
    assert figures["per_step_exchange"] == 4 * figures["coordinates"]  # one local step
    assert figures["below_per_step"] == pytest.approx(figures["per_step_exchange"] / figures["per_device_round"])
    assert figures["rounds"] == [{key: row[key] for key in ("round", "up", "down", "counted")}]


def test_rounds_without_a_counted_answer_divide_by_nothing(started: Simulation) -> None:
    facts = started.folder.facts()
    silent = [row | {"counted": 0, "up": 0} for row in facts["rounds_1"]["traffic"]]
    for traffic in ([], silent):
        figures = summary._bytes(started, {"rounds_1": {"traffic": traffic}})
        assert figures["per_device_round"] == sum(row["down"] for row in traffic)
        assert figures["per_step_exchange"] == (0 if traffic else None)


def test_the_private_loss_is_that_of_the_erased_block() -> None:
    rows = [
        {"device": f"device-{n}", "topic": topic, "without": 6.0 + n, "with": 5.0 + n}
        for n, topic in ((0, "finance"), (0, "notes"), (1, "notes"))
    ]
    evaluation = {"loss": {}, "rounds": {}, "private_blocks": rows, "by_frequency": []}
    erased = {"erasure": {"device": "device-1", "topic": "notes"}, "after_erasure": 7.0}
    losses = summary._losses({"pretrain": {"curve": [1, 2]}, "erase": {}}, evaluation, erased)
    assert losses["private"] == {"without": 7.0, "with": 6.0, "after_erasure": 7.0}
    assert losses["by_phase"] == [1, 2]
    assert summary._losses({}, evaluation, {"residue": {}})["private"] is None


def test_no_infinite_number_reaches_the_json(started: Simulation) -> None:
    blocks = [{"device": "device-0", "block": "b", "topic": "notes", "epsilon": 7.5, "delta": 1e-5, "digest": "x"}]
    figures = summary._epsilon(started, {"private": {"blocks": blocks}})
    assert (figures["device"], figures["coordinator"], figures["blocks_max"]) == (None, None, 7.5)
    assert "unsafe_no_dp" in figures["device_reason"]
    assert "digest" not in figures["blocks"][0]
    json.dumps(figures, allow_nan=False)
    assert summary._epsilon(started, {})["blocks_max"] is None


@pytest.mark.parametrize(
    ("corpus", "generated", "kind"),
    [(None, True, "generated"), (None, False, "wikipedia"), ("a.jsonl", False, "user")],
)
def test_the_kind_of_text(started: Simulation, corpus: Any, generated: bool, kind: str) -> None:
    sim = replace(started, corpus=corpus)
    vars(sim).update(population=replace(started.population, generated=generated))
    assert summary._corpus(sim) == kind


def test_a_summary_holds_the_results_of_every_phase(sim: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = {"loss": {"fetched": 4.5}, "rounds": {}, "private_blocks": [], "by_frequency": [], "seconds": 2.0}
    sim.folder.finish_phase("evaluate", evaluation)
    sim.folder.finish_phase("erase", {"residue": {"before": 0, "after": None}, "seconds": 0.5})
    data = summary.summarise_run(sim)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["seconds"]["total"] == 4 * 1.0 + 2.5
    assert (data["name"], data["scenario"], data["state"], data["erasure"]) == ("small", "mini", "completed", None)
    assert data["releases"] == [sim.facts("rounds_1")["release"]]
    assert data["peak_rss_mb"] > 10
