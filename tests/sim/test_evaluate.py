"""Public losses share one anchor and one text; private ones are measured on generated text only."""

from dataclasses import replace
from typing import Any

import pytest
from msgspec.structs import replace as changed

from fedmem.sim.context import Simulation
from fedmem.sim.phases import evaluate


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Calls of the private loss, which is 6 without the block and 5 with it."""
    calls = list[Any]()

    def loss(sim: Simulation, device: int, topic: str, *, private: bool) -> float:
        calls.append((device, topic, private))
        return 5.0 if private else 6.0

    monkeypatch.setattr(evaluate, "measure_private_loss", loss)
    return calls


def test_every_loss_of_the_report_is_measured(started: Simulation, asked: list[Any]) -> None:
    facts = evaluate.evaluate_phase(started)
    loss, rounds = facts["loss"], facts["rounds"]
    assert set(loss) == {"anchor", "generic", "fetched", "fetched_by_prefix", "wrong"}
    assert rounds == {
        "before": rounds["before"],
        "after": loss["fetched"],
        "change": loss["fetched"] - rounds["before"],
    }
    assert rounds["change"] != 0
    assert sum(row["documents"] for row in facts["by_frequency"]) == len(started.population.heldout)
    assert facts["private_blocks"] == [
        {"device": f"device-{device}", "topic": topic, "without": 6.0, "with": 5.0}
        for device, topic in started.population.learned
    ]
    assert asked == [(*key, private) for key in started.population.learned for private in (False, True)]


def test_of_the_users_text_no_private_loss_is_computed(started: Simulation, asked: list[Any]) -> None:
    own = replace(started)
    vars(own).update(population=replace(started.population, generated=False))
    assert evaluate.evaluate_phase(own)["private_blocks"] == []
    assert asked == []


def test_without_a_control_there_is_no_gain_to_show(started: Simulation, asked: list[Any]) -> None:
    bare = replace(started, scenario=changed(started.scenario, anchor=changed(started.scenario.anchor, control=False)))
    vars(bare).update(population=replace(started.population, learned=[]))
    facts = evaluate.evaluate_phase(bare)
    assert "anchor" not in facts["loss"]
    assert facts["by_frequency"] == []
