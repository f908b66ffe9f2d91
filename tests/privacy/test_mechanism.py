"""The mechanism from its definition, beyond its parts' own tests: neighbours, noise of several runs, accounts."""

import math
import os
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from fedmem.anchor.presets import new_anchor
from fedmem.anchor.tokenizer import PAD, train_tokenizer
from fedmem.device.learning import LearnSettings, learn_topic
from fedmem.eval.one_run import watched
from fedmem.memory.attach import attach
from fedmem.memory.block import new_blocks
from fedmem.memory.sites import spec_for
from fedmem.policy.files import Topic
from fedmem.privacy import dpsgd
from fedmem.privacy.accounting import epsilon_pld, epsilon_rdp
from fedmem.privacy.clip import CellSum
from fedmem.privacy.dpsgd import clipped_sum, train_block
from fedmem.privacy.gradients import PrivateSequences, RuntimeOptions, frozen, per_record
from fedmem.privacy.grid import Grid
from fedmem.privacy.plan import PrivacyPlan
from fedmem.privacy.spend import SpendEvent
from fedmem.privacy.stream import PrivacyStream
from fedmem.routing.tree import Tree
from fedmem.training.bank_state import BankState
from fedmem.training.release import Release
from fedmem.vault.vault import NewRecord, Vault
from tests.privacy.models import LENGTH, VOCAB, anchor, sequences, spec, warm_block
from tests.privacy.reference import clipped

KEY = bytes(range(32))
PLAN = PrivacyPlan(sampling_rate=0.5, steps=4, clip=0.1, noise_multiplier=1.5, divisor=4.0, delta=1e-5, record_cap=1000)
DELTA = 1e-5


# Accounting: heterogeneous ledgers, and a second opinion on them.


def ledger(seed):
    """A ledger of two to five runs with rates, noise and steps of their own."""
    drawn = np.random.default_rng(seed)
    return [
        SpendEvent(
            float(drawn.choice([0.02, 0.15, 0.4, 1.0])), float(drawn.uniform(0.8, 6.0)), int(drawn.integers(1, 60))
        )
        for _ in range(drawn.integers(2, 6))
    ]


@pytest.mark.parametrize("seed", range(12))
def test_rdp_is_never_below_pld_for_ledgers_of_many_kinds(seed):
    assert epsilon_rdp(ledger(seed), DELTA) >= epsilon_pld(ledger(seed), DELTA, grid=1e-3) > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    "history", [[(3.0, 0.2, 10), (5.0, 0.1, 30)], [(4.0, 0.3, 8), (6.0, 0.15, 20), (2.5, 0.02, 50)]]
)
def test_opacus_prv_is_a_little_above_pld_for_ledgers_of_many_kinds(history):
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = history
    exact = epsilon_pld([SpendEvent(rate, sigma, steps) for sigma, rate, steps in history], DELTA)
    assert 0.0 <= accountant.get_epsilon(DELTA, eps_error=5e-4) - exact <= 1.5e-3


# Noise: of steps, blocks, subjects, restarts and forked workers.


def largest_correlation(rows):
    return float(np.abs(np.corrcoef(rows) - np.eye(len(rows))).max())


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    tokenizer = train_tokenizer(["a plain public text", "another public text"], vocab_size=280)
    model, vectors = new_anchor("nano", 280, 0), np.eye(4, 8, dtype=np.float32)
    bank = BankState.new(spec_for(model, "ffn", 2, (4, 2)), 0).stream()
    folder = tmp_path_factory.mktemp("releases")
    return Release.write(folder, model, tokenizer, Tree(2, 2, (vectors[:2], vectors)), "none", bank)


def add(vault, release, topic):
    vector = np.eye(8, dtype=np.float32)[0]
    vault.add_records([NewRecord("the same record for all", topic, (0, 0), vector, release.digest)])


def learned(vault, release, topic, plan, **options):
    """Updates of a run as they reach the optimiser, in units of the noise's std."""
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    with watched() as trace:
        budget = Topic(topic, math.inf, DELTA)
        learn_topic(vault, release, budget, plan, settings=LearnSettings(width=4, length=16), **options)
    std = plan.noise_multiplier * plan.clip / plan.divisor
    return torch.stack(trace.updates_SX).numpy() / std


def test_noise_of_blocks_subjects_and_restarts_is_uncorrelated(tmp_path, monkeypatch, release):
    """Equal records, equal plan, equal global seeds: each run draws noise of its own."""
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))
    plan, runs = replace(PLAN, clip=1e-4), {}  # so small that the one record's gradient does not tell in the sum
    for subject in ("alice", "bob"):
        with Vault.create(tmp_path / subject, subject=subject) as vault:
            for topic in ("health", "finance"):
                add(vault, release, topic)
                for time in ("first", "again"):
                    runs[subject, topic, time] = learned(vault, release, topic, plan)
    assert len(runs) == 8
    rows, updates = np.stack([run.ravel() for run in runs.values()]), np.concatenate([*runs.values()])
    assert largest_correlation(rows) < 5 / math.sqrt(rows.shape[1])
    # 496 pairs of steps, and keys that are fresh each time: beyond 5 by chance once in 4,000 runs.
    assert largest_correlation(updates) < 6 / math.sqrt(updates.shape[1])
    assert abs(updates.std() - 1) < 0.02
    assert kstest(updates.ravel(), "norm").pvalue > 1e-6


def test_the_check_would_see_a_key_that_two_subjects_share(tmp_path, monkeypatch, release):
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))
    runs = []
    for subject in ("alice", "bob"):
        with Vault.create(tmp_path / subject, subject=subject, simulated=True) as vault:
            add(vault, release, "health")
            runs.append(learned(vault, release, "health", PLAN, run_key=KEY))
    assert largest_correlation(np.concatenate(runs)) > 0.99


WORKERS = """
import os, random, sys
import numpy as np
from pathlib import Path
from fedmem.privacy.rounded_gaussian import rounded_gaussian
from fedmem.privacy.stream import PrivacyStream
from fedmem.vault.vault import NewRecord, Vault

root = Path(sys.argv[1])
random.seed(0)
np.random.seed(0)
spend = {"mechanism": "poisson-gaussian/1", "sampling_rate": 0.5, "noise_multiplier": 1.0, "steps": 1}

def worker(number):
    with Vault.create(root / str(number), subject="ana") as vault:
        vault.add_records([NewRecord("the same", "health", (), np.ones(8, np.float32), "r" * 64)])
        ids = [record.id for record in vault.records("health")]
        run = vault.begin_run("health", "r" * 64, {}, "00", ids, spend)
        key = getattr(run, "key", None) if len(sys.argv) < 3 else bytes(32)
        np.save(root / f"{number}.npy", rounded_gaussian(PrivacyStream(key, b"one label"), 50_000, 1e6))

for number in range(3):
    child = os.fork()
    if not child:
        worker(number)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("shared", [False, True])
def test_noise_of_forked_workers_is_uncorrelated(tmp_path, shared):
    """Three children of one process, with its state of every generator; one key for all is the negative control."""
    environment = os.environ | {"FEDMEM_HOME": str(tmp_path / "home")}
    words = [sys.executable, "-c", WORKERS, str(tmp_path), *(["shared"] if shared else [])]
    subprocess.run(words, env=environment, check=True, timeout=60)
    noise = np.stack([np.load(tmp_path / f"{number}.npy") for number in range(3)])
    assert (largest_correlation(noise) < 5 / math.sqrt(noise.shape[1])) != shared


# Sensitivity: neighbours through the engine, with adversarial records.

KINDS = ("plain", "long", "one_token", "padding", "duplicate")


def records(kinds, seed):
    """Sequences of each record: `long` is one sequence 40 times over, `duplicate` is the record before it again."""
    drawn, found = np.random.default_rng(seed), []
    for kind in kinds:
        row = torch.full((LENGTH,), PAD)
        length = 1 if kind == "one_token" else int(drawn.integers(2, LENGTH + 1))
        if kind != "padding":
            row[:length] = torch.from_numpy(drawn.integers(1, VOCAB, length))
        found.append(found[-1] if kind == "duplicate" and found else [row] * (40 if kind == "long" else 1))
    return found


def data_of(found):
    record_N = np.repeat(np.arange(len(found)), [len(rows) for rows in found])
    rows = [row for record in found for row in record]
    return PrivateSequences(torch.stack(rows) if rows else torch.full((0, LENGTH), PAD), record_N, len(found))


MODEL, BLOCK = anchor(), warm_block()


def grid_of(clip):
    return Grid.fitting(clip, 1.0, spec().fetch_size, 1000)


def total(found, clip, summed=clipped_sum):
    data, memory = data_of(found), attach(MODEL)
    with frozen(MODEL), per_record(MODEL, memory, spec(), data, RuntimeOptions()) as gradients:
        result = summed(gradients, BLOCK, data, np.ones(len(found), bool), grid_of(clip))
    memory.detach()
    return result.cells_X.double() * grid_of(clip).spacing


@settings(max_examples=12, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=5),
    data=st.data(),
    clip=st.sampled_from([1e-3, 0.1]),
    seed=st.integers(0, 99),
)
def test_taking_out_any_record_moves_the_engine_s_sum_by_at_most_clip(kinds, data, clip, seed):
    found = [*records(["plain"], seed + 1), *records(kinds, seed)]
    removed = data.draw(st.integers(1, len(kinds)))
    fewer = [record for number, record in enumerate(found) if number != removed]
    assert float((total(found, clip) - total(fewer, clip)).norm()) <= clip


def test_the_sensitivity_check_would_see_no_clip_and_a_clip_of_the_batch():
    found = records(["plain", "long"], 0)

    def unclipped(gradients, block, data, chosen, grid):
        return clipped_sum(gradients, block, data, chosen, replace(grid, clip=1e6 * grid.clip))

    def batch_clipped(*given):
        cells_X = unclipped(*given).cells_X
        return CellSum((cells_X * (given[-1].cells / float(cells_X.double().norm()))).long(), given[-1])

    for wrong in (unclipped, batch_clipped):
        assert float((total(found, 0.1, wrong) - total(found[:1], 0.1, wrong)).norm()) > 0.1 * (1 + 1e-5)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e38, 0.0])
def test_a_record_whose_gradient_is_poisoned_moves_the_update_by_at_most_clip(monkeypatch, poison):
    """Through training itself: both neighbours draw the same noise, so their first updates differ by the sums alone."""
    real = dpsgd.per_record
    monkeypatch.setattr(dpsgd, "per_record", lambda *given: Poisoned(real(*given), given[3], poison))
    plan = replace(PLAN, steps=1, sampling_rate=1.0, noise_multiplier=0.0)
    found = records(["plain", "plain", "plain"], 5)
    whole, part = (first_update(data_of(rows), plan) * plan.divisor for rows in (found, found[:2]))
    assert torch.isfinite(whole).all()
    assert float((whole - part).double().norm()) <= plan.clip * (1 + 1e-5)


class Poisoned:
    """An engine whose gradients of record 2 hold `poison`."""

    def __init__(self, engine, data, poison):
        self.engine, self.data, self.poison = engine, data, poison

    def __enter__(self):
        gradients = self.engine.__enter__()

        def poisoned(block_X, numbers_B):
            grad_X = gradients(block_X, numbers_B).clone()
            if self.data.record_N[numbers_B[0]] == 2:
                grad_X[::7] = self.poison
            return grad_X

        return poisoned

    def __exit__(self, *error):
        return self.engine.__exit__(*error)


def first_update(data, plan, label=b"run"):
    return updates_of(data, plan, label)[0]


def updates_of(data, plan, label=b"run"):
    model, start_X = anchor(), new_blocks(spec(), 1, 1, torch.Generator().manual_seed(3))[0]
    with watched() as trace:
        train_block(model, attach(model), spec(), start_X, data, plan, PrivacyStream(KEY, label))
    return torch.stack(trace.updates_SX)


# Neighbours: what is done is the same with and without the record.


@pytest.mark.parametrize("seed", range(3))
def test_steps_divisor_shapes_and_draws_are_equal_with_and_without_the_record(monkeypatch, seed):
    """Every draw of noise has its size and std whoever is there; the others are sampled as they were."""
    draws, chosen = [], []
    draw, bernoulli = dpsgd.rounded_gaussian, PrivacyStream.bernoulli
    monkeypatch.setattr(dpsgd, "rounded_gaussian", lambda of, n, std: (draws.append((n, std)), draw(of, n, std))[1])
    monkeypatch.setattr(
        PrivacyStream, "bernoulli", lambda self, n, rate: (chosen.append(found := bernoulli(self, n, rate)), found)[1]
    )
    kinds = ["plain", "long", "plain", "one_token", "padding"]
    found, seen = records(kinds, seed), []
    for rows in (found, found[:-1]):
        updates = updates_of(data_of(rows), PLAN)
        seen.append((updates.shape, tuple(draws), len(chosen)))
        draws.clear()
    assert seen[0][:2] == seen[1][:2]
    whole, part = chosen[: PLAN.steps], chosen[PLAN.steps :]
    assert len(part) == PLAN.steps
    assert all(np.array_equal(mine[:-1], theirs) for mine, theirs in zip(whole, part, strict=True))


def test_neighbours_with_one_key_differ_by_at_most_the_clip_norm_over_the_public_divisor():
    """The first update, noise included: the divisor does not follow the number of records, nor does the noise."""
    found = records(["plain"] * 6, 7)
    plan = replace(PLAN, sampling_rate=1.0, steps=1, clip=1e-3)
    whole = first_update(data_of(found), plan)
    for count in (5, 1, 0):
        moved = float((whole - first_update(data_of(found[:count]), plan)).double().norm()) * plan.divisor
        assert moved <= (6 - count) * plan.clip * (1 + 1e-4)
        assert moved > 0.2 * plan.clip


@pytest.mark.parametrize("kinds", [["padding"], ["one_token"], ["one_token", "padding"]])
def test_a_sample_of_records_without_a_token_to_predict_is_a_step_like_any_other(kinds):
    plan = replace(PLAN, sampling_rate=1.0)
    assert torch.equal(updates_of(data_of(records(kinds, 0)), plan), updates_of(sequences([]), plan))


def test_the_oracle_and_the_engine_agree_on_adversarial_records():
    """Per-record autograd, clipped and summed by hand, against the engine, on records of every kind."""
    found, clip = records([*KINDS, "plain"], 11), 0.05
    data, memory = data_of(found), attach(MODEL)
    with frozen(MODEL), per_record(MODEL, memory, spec(), data, RuntimeOptions()) as gradients:
        alone = [gradients(BLOCK, np.flatnonzero(data.record_N == n)).clone() for n in range(data.records)]
    memory.detach()
    expected = clipped(alone, grid_of(clip)).double() * grid_of(clip).spacing
    assert float((total(found, clip) - expected).abs().max()) <= len(found) * grid_of(clip).spacing
