"""Membership from the last bits (arXiv 2207.13793): nothing to see on the grid, all to see with float noise."""

import numpy as np
import pytest
import torch

from fedmem.eval.one_run import watched
from fedmem.federation import device_dp, fixedpoint
from fedmem.federation.device_dp import DevicePlan
from fedmem.memory.attach import attach
from fedmem.memory.block import new_blocks
from fedmem.privacy import dpsgd
from fedmem.privacy.dpsgd import clipped_sum, train_block
from fedmem.privacy.gradients import RuntimeOptions, frozen, per_record
from fedmem.privacy.plan import PrivacyPlan
from fedmem.privacy.stream import PrivacyStream
from tests.privacy.models import anchor, sequences, spec
from tests.privacy.rounding import impossible, impossible_float

TRIALS = 12
SPEC = spec(16)


def stream(trial):
    return PrivacyStream(trial.to_bytes(32, "big"), b"attack")


def float_noise(clipped, noise_multiplier, of):
    """The planted bug: float32 noise on a float32 sum, as it was."""
    draws = np.random.default_rng(int(of.words(1)[0])).standard_normal(len(clipped.cells_X))
    noise = (draws * noise_multiplier * clipped.grid.clip).astype(np.float32)
    noisy = (clipped.cells_X.double() * clipped.grid.spacing).float() + torch.from_numpy(noise)
    return _Decoded(noisy, clipped.grid)


class _Decoded:
    """A noisy sum that is a float already: `train_block` only scales it."""

    def __init__(self, noisy, grid):
        self.noisy, self.grid = noisy, grid

    def double(self):
        return self

    def mul_(self, factor):
        return self.noisy / np.float32(self.grid.spacing / factor)


def first_update(trial, plan, included):
    model, of = anchor(), SPEC
    start_X = new_blocks(of, 1, 1, torch.Generator().manual_seed(3))[0]
    with watched() as trace:
        train_block(model, attach(model), of, start_X, sequences([1] * included), plan, stream(trial))
    return trace.updates_SX[0].numpy(), start_X


def cells_of(start_X, plan, included):
    model, data = anchor(), sequences([1] * included)
    with frozen(model), per_record(model, attach(model), SPEC, data, RuntimeOptions()) as gradients:
        return clipped_sum(
            gradients, start_X, data, np.ones(included, bool), plan.grid(SPEC.fetch_size)
        ).cells_X.numpy()


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0])
def test_no_update_is_impossible_under_either_hypothesis(epsilon):
    plan = PrivacyPlan(1.0, 1, 0.1, 0.0, 7.0, 1e-5, 1000).calibrate(epsilon)
    spacing = plan.grid(SPEC.fetch_size).spacing
    for trial in range(TRIALS):
        update, start_X = first_update(trial, plan, trial % 2)
        for hypothesis in (0, 1):
            assert impossible(update, cells_of(start_X, plan, hypothesis), spacing, plan.divisor) == 0


def test_the_same_integer_noise_gives_each_value_under_both_hypotheses():
    """A noisy sum is an integer; the noise that leads to it from either sum is a draw of the same law, and possible."""
    plan = PrivacyPlan(1.0, 1, 0.1, 1.0, 7.0, 1e-5, 1000)
    grid = plan.grid(SPEC.fetch_size)
    start_X = new_blocks(SPEC, 1, 1, torch.Generator().manual_seed(3))[0]
    one, none = cells_of(start_X, plan, 1), cells_of(start_X, plan, 0)
    noisy = dpsgd.add_noise(dpsgd.CellSum(torch.from_numpy(one), grid), 1.0, stream(1)).numpy()
    for sums in (one, none):
        assert (np.abs(noisy - sums) < 32 * grid.std(1.0)).all()
    low_bits = [np.bincount((noisy - sums) & 15, minlength=16) for sums in (one, none)]
    assert max(bits.max() for bits in low_bits) < 1.35 * SPEC.fetch_size / 16


def test_the_attack_tells_every_time_with_float_noise(monkeypatch):
    """The negative control."""
    monkeypatch.setattr(dpsgd, "add_noise", float_noise)
    plan, right = PrivacyPlan(1.0, 1, 0.1, 0.0, 7.0, 1e-5, 1000).calibrate(8.0), 0
    for trial in range(TRIALS):
        update, start_X = first_update(trial, plan, trial % 2)
        # Float noise on a sum of zeros gives every float, so the attacker asks about the other sum.
        total = cells_of(start_X, plan, 1) * plan.grid(SPEC.fetch_size).spacing
        right += (impossible_float(update, total.astype(np.float32), plan.divisor) == 0) == bool(trial % 2)
    assert right >= TRIALS - 1


def test_no_federated_mean_is_impossible_under_either_hypothesis():
    terms, size = DevicePlan(1000, sampling_rate=0.3, rounds=6, noise_multiplier=0.8), 2000
    step, draws = fixedpoint.grid_step(1.0), np.random.default_rng(0)

    def update():
        values = draws.normal(0, 3 / size**0.5, size).astype(np.float32)
        return fixedpoint.clip_grid({"w": fixedpoint.quantise(values, step)}, 1.0)["w"]

    for trial in range(TRIALS):
        without = sum(update().astype(np.int64) for _ in range(50))
        both = [without, without + update()]
        mean = device_dp.noisy_mean({"w": both[trial % 2]}, terms, stream(trial))["w"]
        assert [impossible(mean, part, step, terms.expected_cohort) for part in both] == [0, 0]
