from dataclasses import dataclass, field
from typing import Any

import pytest

from fedmem.errors import BudgetExceeded, VerificationFailed
from fedmem.privacy.accounting import epsilon_pld
from fedmem.privacy.ledger import Meter, block_epsilon, check_budget, is_open, record_epsilon, subject_epsilon
from fedmem.privacy.spend import SpendEvent

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
