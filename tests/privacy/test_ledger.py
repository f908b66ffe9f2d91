import contextlib
import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from fedmem.device import learning as learn
from fedmem.errors import BudgetExceeded, VerificationFailed
from fedmem.memory.attach import attach
from fedmem.policy.files import Topic
from fedmem.privacy import dpsgd
from fedmem.privacy.accounting import epsilon_pld, epsilon_rdp, rdp
from fedmem.privacy.ledger import (
    Meter,
    block_epsilon,
    check_budget,
    greatest_epsilon,
    is_open,
    read_run_states,
    record_epsilon,
    subject_epsilon,
)
from fedmem.privacy.plan import PrivacyPlan
from fedmem.privacy.spend import SpendEvent
from fedmem.privacy.stream import PrivacyStream
from fedmem.vault.crypto.key_table import RolledBack
from fedmem.vault.vault import NewRecord, Vault
from tests.privacy.models import anchor, sequences, spec, warm_block

DELTA = 1e-5
SPEND = SpendEvent(0.15, 1.5, 40)


@dataclass
class Event:
    kind: str
    payload: dict[str, Any] = field(default_factory=dict)


def spent(run, records, spend=SPEND):
    payload = {"run": run, "block": f"block of {run}", "release": "r1", "records": records, "spend": spend.to_dict()}
    return Event("spend", payload)


def times(n, spend=SPEND):
    return epsilon_pld([spend] * n, DELTA)


def test_a_record_composes_every_run_it_was_in():
    events = [spent("1", ["a", "b"]), spent("2", ["b", "c"]), spent("3", ["d"])]
    assert [record_epsilon(events, r) for r in "abcde"] == [times(1), times(2), times(1), times(1), 0.0]
    assert subject_epsilon(events) == times(2)
    assert subject_epsilon(events) < times(3)
    assert block_epsilon(events, "1") == block_epsilon(events, "block of 1") == times(1)
    assert block_epsilon(events, "no such block") == 0.0


def test_failed_and_erased_runs_stay_charged():
    events = [spent("1", ["a"]), Event("run_failed", {"run": "1"}), spent("2", ["a"])]
    events += [Event("run_finished", {"run": "2"}), Event("erased", {"block": "block of 2"})]
    assert subject_epsilon(events) == times(2)


def test_without_lineage_everything_composes():
    events = [spent("1", ["a"]), spent("2", ["b"]), spent("3", None)]
    assert subject_epsilon(events) == times(2)
    assert subject_epsilon([spent(str(i), None) for i in range(3)]) == times(3)
    assert subject_epsilon([spent("1", ["a"]), spent("2", [])]) == times(2)  # a run of nobody is not known to be one
    assert subject_epsilon([]) == 0.0


def test_no_noise_is_infinite():
    assert subject_epsilon([spent("1", ["a"]), spent("2", ["b"], SpendEvent(0.1, 0.0, 1))]) == float("inf")


def test_the_budget_is_that_of_the_records_in_the_run():
    events = [spent("1", ["a"]), spent("2", ["b"])]
    check_budget(events, SPEND, ["c"], budget=times(1), delta=DELTA)
    check_budget(events, SPEND, ["a", "c"], budget=times(2), delta=DELTA)
    with pytest.raises(BudgetExceeded):
        check_budget(events, SPEND, ["a", "c"], budget=0.99 * times(2), delta=DELTA)
    with pytest.raises(BudgetExceeded):
        check_budget([*events, spent("3", None)], SPEND, ["c"], budget=times(1), delta=DELTA)
    for budget in (float("nan"), 0.0, -1.0):
        with pytest.raises(BudgetExceeded):
            check_budget([], SPEND, ["c"], budget=budget, delta=DELTA)


MECHANISMS = [SpendEvent(0.1, 4.0, 20), SpendEvent(0.05, 3.0, 30), SpendEvent(1.0, 20.0, 3)]


def history(seed):
    """Four runs of different mechanisms on random records, some of lost lineage."""
    draw = random.Random(seed)
    lineages = [draw.choice([None, *(draw.sample("abcd", draw.randint(1, 3)) for _ in range(4))]) for _ in range(4)]
    return [(draw.choice(MECHANISMS), lineage) for lineage in lineages]


@pytest.mark.parametrize("seed", range(20))
def test_each_record_has_its_own_history(seed):
    past = history(seed)
    events = [spent(str(i), lineage, spend) for i, (spend, lineage) in enumerate(past)]

    def one_by_one(record):
        return epsilon_rdp([spend for spend, lineage in past if lineage is None or record in lineage], DELTA)

    assert greatest_epsilon(events, "bc", DELTA, epsilon_rdp) == max(map(one_by_one, "bc"))
    assert subject_epsilon(events, DELTA, epsilon_rdp) == max(map(one_by_one, "abcde"))


def test_the_budget_composes_runs_of_different_mechanisms():
    low, middle, high = MECHANISMS
    events = [spent("1", ["a", "b"], low), spent("2", ["b", "c"], middle), spent("3", None, high)]
    needed = epsilon_pld([low, middle, high, low], DELTA)  # of b, who was in all
    check_budget(events, low, "abc", budget=needed, delta=DELTA)
    with pytest.raises(BudgetExceeded):
        check_budget(events, low, "abc", budget=needed * (1 - 1e-9), delta=DELTA)
    alone = epsilon_pld([low, high, low], DELTA)  # of a, without b
    assert alone < needed
    check_budget(events, low, "a", budget=alone, delta=DELTA)
    with pytest.raises(BudgetExceeded):
        check_budget(events, low, "ab", budget=alone, delta=DELTA)
    assert subject_epsilon(events, DELTA, epsilon_rdp) > subject_epsilon(events)


def test_a_stricter_delta_needs_more_budget():
    budget = times(2)
    check_budget([spent("1", ["a"])], SPEND, ["a"], budget=budget, delta=DELTA)
    with pytest.raises(BudgetExceeded):
        check_budget([spent("1", ["a"])], SPEND, ["a"], budget=budget, delta=DELTA / 10)


def test_how_each_run_stands():
    events = [spent(name, ["a"]) for name in "12345"]
    events += [Event("run_finished", {"run": "1", "block": "block of 1"}), Event("run_failed", {"run": "2"})]
    events += [
        Event("run_finished", {"run": "3", "block": "block of 3"}),
        Event("erased", {"ids": ["block of 3", "x"]}),
    ]
    events += [Event("erased", {"ids": ["4"]}), spent("6", None), spent("7", [])]
    events += [Event("spend", spent("8", None).payload | {"release": ""})]  # as a restore writes it
    found = ["finished", "failed", "erased", "erased", "open", "open", "open", "lost"]
    assert read_run_states(events) == dict(zip("12345678", found, strict=True))


@pytest.mark.parametrize(
    "wrong",
    [
        [spent("1", ["a"])],
        [Event("run_finished", {"run": "2", "block": "block of 2"})],
        [Event("run_failed", {})],
        [Event("run_finished", {"run": "1", "block": "block of 2"})],
        [Event("run_finished", {"run": "1"})],
        [Event("run_failed", {"run": "1"})] * 2,
        [Event("run_failed", {"run": "1"}), Event("run_finished", {"run": "1", "block": "block of 1"})],
    ],
)
def test_a_history_that_cannot_be(wrong):
    with pytest.raises(VerificationFailed, match="contradicts"):
        read_run_states([spent("1", ["a"]), *wrong])


def test_an_open_run_is_one_that_has_not_ended():
    events = [spent("1", ["a", "b"])]
    spend = SPEND.to_dict()
    assert is_open(events, "r1", ["a", "b"], spend)
    assert not is_open(events, "r2", ["a", "b"], spend)
    assert not is_open(events, "r1", ["a"], spend)
    assert not is_open(events, "r1", ["a", "b"], spend | {"plan": "other"})
    for ended in ("run_finished", "run_failed"):
        assert not is_open([*events, Event(ended, {"run": "1"})], "r1", ["a", "b"], spend)


def damaged(**changes):
    return Event("spend", spent("1", ["a"]).payload | changes)


@pytest.mark.parametrize(
    "event",
    [
        Event("spend", {}),
        damaged(spend={}),
        damaged(spend=None),
        damaged(spend=SPEND.to_dict() | {"mechanism": "other"}),
        damaged(spend=SPEND.to_dict() | {"steps": -1}),
        damaged(spend=SPEND.to_dict() | {"steps": 1.5}),
        damaged(spend=SPEND.to_dict() | {"noise_multiplier": float("inf")}),
        damaged(spend=SPEND.to_dict() | {"sampling_rate": "low"}),
        damaged(records=7),
    ],
)
def test_a_spend_that_cannot_be_read_is_never_skipped(event):
    with pytest.raises(VerificationFailed):
        subject_epsilon([spent("0", ["a"]), event])


def test_the_meter_stops_before_the_step_that_is_not_covered():
    meter = Meter(SPEND)
    for _ in range(SPEND.steps):
        meter.take(SPEND.sampling_rate, SPEND.noise_multiplier)
    with pytest.raises(BudgetExceeded):
        meter.take(SPEND.sampling_rate, SPEND.noise_multiplier)


@pytest.mark.parametrize(("rate", "noise"), [(0.15, 1.4), (0.16, 1.5), (1.0, 1.5), (0.15, 0.0)])
def test_the_meter_sees_a_costlier_step(rate, noise):
    with pytest.raises(BudgetExceeded):
        Meter(SpendEvent(0.15, 1.5, 1)).take(rate, noise)


def test_a_refused_step_is_not_counted():
    meter = Meter(SpendEvent(0.15, 1.5, 1))
    with pytest.raises(BudgetExceeded):
        meter.take(1.0, 1.5)
    meter.take(0.15, 1.5)


def test_the_meter_stops_where_mixed_steps_would_pass_the_charge_at_any_order():
    meter, mixed = Meter(SPEND), [(0.15, 1.5, 20)]
    for _ in range(20):
        meter.take(0.15, 1.5)
    covered = rdp(((SPEND.sampling_rate, SPEND.noise_multiplier, SPEND.steps),))
    taken = 0
    with contextlib.suppress(BudgetExceeded):
        for _ in range(1000):
            meter.take(0.1, 2.0)
            taken += 1
    within, beyond = (rdp((*mixed, (0.1, 2.0, steps))) for steps in (taken, taken + 1))
    assert np.all(within <= covered)
    assert np.any(beyond > covered)
    assert 20 < taken < 1000
    assert epsilon_pld([SpendEvent(*mixed[0]), SpendEvent(0.1, 2.0, taken)], DELTA) <= times(1)


def test_no_gradient_is_computed_for_a_step_that_is_not_covered(monkeypatch):
    plan = PrivacyPlan(0.5, 4, 0.1, 1.0, 4.0, 1e-5, 1000)
    steps, ticks, clipped_sum = [], [], dpsgd.clipped_sum
    monkeypatch.setattr(dpsgd, "clipped_sum", lambda *given: (steps.append(1), clipped_sum(*given))[1])
    model, charged = anchor(), Meter(SpendEvent(0.5, 1.0, 3))
    memory, stream = attach(model), PrivacyStream(bytes(32), b"run")
    with pytest.raises(BudgetExceeded):
        dpsgd.train_block(model, memory, spec(), warm_block(), sequences([1, 2]), plan, stream, meter=charged,
                          progress=lambda step, _: ticks.append(step))  # fmt: skip
    assert (len(steps), ticks) == (3, [1, 2, 3])


def test_training_does_not_start_on_a_ledger_that_was_cut(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(learn, "_sequences", lambda *_: None)
    monkeypatch.setattr(learn, "private_spec", lambda *_: SimpleNamespace(fetch_size=8))
    monkeypatch.setattr(learn, "train_block", lambda *_, **__: pytest.fail("a step was taken"))
    release, plan = SimpleNamespace(digest="r1"), PrivacyPlan(0.1, 5, 0.1, 4.0, 1.0, 1e-5, 100)
    with Vault.create(tmp_path / "vault", subject="alice") as vault:
        ids = vault.add_records([NewRecord("a note", "health", (), np.ones(2, np.float32), "r1")])
        vault.begin_run("health", "r1", {}, "digest", ids, SPEND.to_dict())
        with vault.core.turn(), vault.core.database.session() as session:
            session.execute(text("DELETE FROM events"))
        with pytest.raises(RolledBack):
            learn.learn_topic(vault, release, Topic("health", 8.0, 1e-5), plan)
        with vault.core.database.session() as session:
            assert session.execute(text("SELECT count(*) FROM events")).scalar_one() == 0
