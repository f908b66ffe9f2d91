"""The figures of a privacy statement, from their definition."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

from fedmem.policy.files import Topic
from fedmem.privacy.accounting import epsilon_pld, epsilon_rdp
from fedmem.privacy.spend import SpendEvent
from fedmem.privacy.statement import (
    greatest_readded_epsilon,
    readded_epsilon,
    runs_spent,
    topics_spent,
)

DELTA = 1e-5


HEALTH, NOTES = Topic("health", 8.0, 1e-5), Topic("notes", 2.0, 1e-6)


LOW, HIGH = SpendEvent(0.05, 3.0, 30), SpendEvent(1.0, 4.0, 4)


@dataclass
class Event:
    kind: str
    payload: dict[str, Any] = field(default_factory=dict)


def spent(run: str, records: list[str] | None, spend: SpendEvent = LOW, release: str = "r" * 64) -> Event:
    payload = {"run": run, "block": f"block-{run}", "release": release, "records": records, "spend": spend.to_dict()}
    return Event("spend", payload)


EVENTS = [
    spent("1", ["a", "b"]),
    Event("run_finished", {"run": "1", "block": "block-1"}),
    spent("2", ["b", "n"], HIGH),
    Event("run_failed", {"run": "2"}),
]


def test_runs_stand_with_their_own_figure() -> None:
    one, two = runs_spent(EVENTS, {"1": "health"}, {"1": 1e-7}, epsilon_pld)
    assert (one.run, one.block, one.topic, one.state, one.release) == ("1", "block-1", "health", "finished", "r" * 64)
    assert (one.sampling_rate, one.noise_multiplier, one.steps) == (0.05, 3.0, 30)
    assert (two.topic, two.state) == (None, "failed")
    assert [one.epsilon, two.epsilon] == [epsilon_pld([LOW], 1e-7), epsilon_pld([HIGH], DELTA)]
    assert [one.delta, two.delta] == [1e-7, DELTA]


def test_a_topic_stands_with_its_most_used_record_at_its_own_delta() -> None:
    holds = {"health": ["a", "b"], "notes": ["n"], "old": ["a"], "empty": []}
    budgets = {"health": HEALTH, "notes": NOTES, "empty": replace(NOTES, name="empty")}
    found = topics_spent(EVENTS, budgets, {"1": "old", "2": "health"}, holds.__getitem__, epsilon_pld)
    assert [one.topic for one in found] == ["health", "notes", "empty", "old"]
    health, notes, empty, old = found
    assert health.epsilon == epsilon_pld([LOW, HIGH], DELTA)
    assert health.left == 8.0 - health.epsilon > 0
    assert (notes.epsilon, notes.delta) == (epsilon_pld([HIGH], 1e-6), 1e-6)
    assert (notes.budget, notes.left) == (2.0, 0.0)  # more than its budget, never less than nothing left
    assert (empty.epsilon, empty.left) == (0.0, 2.0)
    assert (old.budget, old.epsilon, old.left) == (None, epsilon_pld([LOW], DELTA), 0.0)
    loose = topics_spent(EVENTS, budgets, {}, holds.__getitem__, epsilon_rdp)
    assert all(rdp.epsilon >= pld.epsilon for rdp, pld in zip(loose, found[:3], strict=True))


def test_spends_that_a_backup_may_lack_leave_nothing_of_any_topic() -> None:
    lost = [*EVENTS, spent("3", None, SpendEvent(1.0, 0.0, 1), release="")]
    assert runs_spent(lost, {}, {}, epsilon_pld)[-1].state == "lost"
    (health,) = topics_spent(lost, {"health": HEALTH}, {}, lambda _: ["a"], epsilon_pld)
    assert (health.epsilon, health.left) == (math.inf, 0.0)


def test_a_text_that_was_added_again_composes_all_trainings_of_its_topic() -> None:
    again = [spent(str(run), [f"record-{run}"], HIGH) for run in range(5)]  # each time a new record
    known = {"0": "health", "1": "health", "2": "notes"}  # an erasure took the topic of 3 and 4 away
    (health,) = topics_spent(again, {"health": HEALTH}, known, lambda name: ["record-0"], epsilon_pld)[:1]
    assert health.epsilon == epsilon_pld([HIGH], DELTA)
    assert health.epsilon_readded == epsilon_pld([HIGH] * 4, DELTA)
    assert greatest_readded_epsilon(again, known, DELTA, epsilon_pld) == epsilon_pld([HIGH] * 4, DELTA)
    assert greatest_readded_epsilon(again, {}, DELTA, epsilon_pld) == epsilon_pld([HIGH] * 5, DELTA)
    assert greatest_readded_epsilon([], {}, DELTA, epsilon_pld) == 0.0


def test_the_figure_of_a_text_added_again_is_never_below_that_of_a_record() -> None:
    moved = [spent("1", ["a"]), spent("2", ["a"]), spent("3", None), spent("4", ["b"])]
    known = {"1": "health", "2": "notes", "3": "notes", "4": "notes"}
    assert readded_epsilon(moved, known, "health", ["a"], DELTA, epsilon_pld) == epsilon_pld([LOW] * 3, DELTA)
    assert readded_epsilon(moved, known, "health", [], DELTA, epsilon_pld) == epsilon_pld([LOW] * 2, DELTA)
    apart = {"1": "health", "2": "notes"}
    assert greatest_readded_epsilon(moved[:2], apart, DELTA, epsilon_pld) == epsilon_pld([LOW] * 2, DELTA)
