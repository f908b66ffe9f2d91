"""The arithmetic of the claims: gaps, intervals, break-even, and which rate an arm keeps."""

import json
import math

import pytest

from benchmarks.claims import ladder
from benchmarks.claims.cells import Arm
from benchmarks.claims.figures import break_even, figures, interval, nested, prediction
from benchmarks.claims.text import load

MEMORY = ("frozen", "random_clusters", "lora_ffn", "lora_qk", "lora_vo", "kv")


def runs(seeds=3):
    """Losses of a made-up ladder: a gap of 0.2, of which co-training closes three quarters."""
    found = {
        "none": [{"loss": 4.0 + s / 100, "lr": 1e-3, "short": 4.1, "retrieved": 4.05} for s in range(seeds)],
        "plain-2.6": [{"loss": 3.8 + s / 100, "parameters": 3000, "lr": 1e-3} for s in range(seeds)],
        "cotrained": [
            {"fetched": 3.85 + s / 100, "generic": 3.95, "wrong": 4.1, "prefix": 3.9, "blocked": 3.92, "bare": 3.96,
             "fetched_parameters": 100, "by_frequency": [], "lr": 3e-3, "short": 4.0, "retrieved": 3.9,
             "growth": [0.05, 0.1]}
            for s in range(seeds)
        ],
    }  # fmt: skip
    return found | {name: [{"fetched": 3.9 + s / 100, "lr": 3e-3} for s in range(seeds)] for name in MEMORY}


def test_figures_have_the_names_and_values_of_the_ladder():
    data = figures(runs(), anchor_parameters=1000)
    assert data["gap_closed"]["cotrained"] == pytest.approx(0.75)
    assert data["gap_closed"]["frozen"] == pytest.approx(0.5)
    assert data["gap_closed"]["gap_nats"] == pytest.approx(0.2)
    assert data["gap_closed"]["runtime_ratio"] == pytest.approx(3000 / 1100)
    assert data["gap_closed"]["fetched_share"] == pytest.approx(0.1)
    assert data["gap_closed"]["break_even_multiple"] == pytest.approx(math.exp(0.75 * math.log(3)) * 1000 / 1100)
    assert set(data["kinds"]) == {"ffn", "lora_ffn", "lora_qk", "lora_vo", "kv"}
    assert {"none", "generic", "fetched", "wrong", "random_clusters"} <= set(data["loss"])
    assert data["retrieval"]["cotrained"] == {"short": 4.0, "retrieved": 3.9}
    assert data["growth"] == pytest.approx({"1": 0.05, "2": 0.1})
    assert data["seeds"] == 3
    assert data["interval"]["gap_closed.gap_nats"] == pytest.approx([0.2, 0.2])


def test_an_interval_is_students_and_one_for_another_run_is_wider():
    low, high = interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)), abs=1e-3)
    assert prediction([1.0, 2.0, 3.0]) == pytest.approx(
        [2 - 4.303 * 2 / math.sqrt(3), 2 + 4.303 * 2 / math.sqrt(3)], abs=1e-3
    )
    assert interval([1.5]) == [1.5, 1.5]


@pytest.mark.parametrize(("fetched", "wanted"), [(3.0, 4.0), (2.5, 4 * math.sqrt(2)), (1.0, 8.0), (4.5, 1.0)])
def test_break_even_lies_between_the_sizes_that_still_improve(fetched, wanted):
    sizes = [(100, 4.0), (400, 3.0), (800, 2.0), (1600, 2.5)]
    assert break_even(fetched, sizes, 100) == pytest.approx(wanted)


def test_dotted_names_nest():
    assert nested({"a.b": 1.0, "a.c": 2.0, "d": 3.0}) == {"a": {"b": 1.0, "c": 2.0}, "d": 3.0}


class Pool:
    """Runs in this process; a run's loss is the distance of its rate from 3e-3."""

    def __init__(self):
        self.done = []

    def submit(self, work, job):
        from concurrent.futures import Future

        self.done.append((job.arm.name, job.seed, job.lr))
        found = {"loss": abs(job.lr - 3e-3), "fetched": abs(job.lr - 1e-2)}
        job.path.write_text(json.dumps(found))
        future = Future()
        future.set_result(None)
        return future


def test_every_arm_keeps_the_rate_that_was_best_on_the_first_seed_and_nothing_runs_twice(tmp_path):
    pool, arms = Pool(), [ladder.NONE, ladder.COTRAINED, Arm("kv", kind="kv")]
    found = ladder.Ladder(ladder.FULL, tmp_path / "runs", 2, pool, lambda _: None).results(arms)
    assert {name: [run["lr"] for run in some] for name, some in found.items()} == {
        "none": [3e-3] * 2, "cotrained": [1e-2] * 2, "kv": [1e-2] * 2
    }  # fmt: skip
    assert len(pool.done) == len(set(pool.done))
    again = Pool()
    ladder.Ladder(ladder.FULL, tmp_path / "runs", 2, again, lambda _: None).results(arms)
    assert again.done == []


def test_the_text_is_dealt_the_same_each_time_and_held_out_text_is_not_trained_on():
    found = load(documents=50)
    assert (len(found.train), len(found.heldout)) == (50, 500)
    assert found == load(documents=50)
    assert not {*found.train} & {*found.heldout}
