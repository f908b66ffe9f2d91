import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from fedmem.errors import BudgetExceeded
from fedmem.memory.attach import attach
from fedmem.memory.block import make_shared_source, new_blocks
from fedmem.memory.spec import LayerShape, MemorySpec
from fedmem.privacy import dpsgd
from fedmem.privacy.clip import CellSum
from fedmem.privacy.dpsgd import Optimiser, add_noise, train_block
from fedmem.privacy.gradients import RuntimeOptions
from fedmem.privacy.ledger import Meter
from fedmem.privacy.plan import PrivacyPlan
from fedmem.privacy.stream import PrivacyStream
from fedmem.training.sequences import readable, token_losses
from tests.privacy.engines import PER_RECORD, engine_sum, norm
from tests.privacy.models import D_MODEL, LAYERS, WIDTH, anchor, sequences, spec, warm_block

KEY = bytes(range(32))


def plan(**changes):
    base = PrivacyPlan(
        sampling_rate=0.5, steps=3, clip=0.1, noise_multiplier=1.0, divisor=4.0, delta=1e-5, record_cap=1000
    )
    return replace(base, **changes)


def stream(label=b"run"):
    return PrivacyStream(KEY, label)


def train(data, privacy=None, label=b"run", **options):
    model = anchor()
    return train_block(model, attach(model), spec(), new_block(), data, privacy or plan(), stream(label), **options)


def new_block():
    return new_blocks(spec(), 1, 1, torch.Generator().manual_seed(3))[0]


def test_both_engines_train_the_same_block():
    fused, opacus = (train(sequences(PER_RECORD), runtime=RuntimeOptions(engine=one)) for one in ("fused", "opacus"))
    torch.testing.assert_close(fused, opacus, atol=1e-5, rtol=0)


def test_removing_one_record_moves_the_sum_by_at_most_clip():
    model, block = anchor(), warm_block()
    data = sequences([*PER_RECORD, *([1] * 40)])
    for record in (0, 3, 20):
        everyone = np.ones(data.records, dtype=bool)
        without = everyone.copy()
        without[record] = False
        whole = engine_sum(model, block, data, everyone, 0.05, 16)
        part = engine_sum(model, block, data, without, 0.05, 16)
        assert 0.04 < norm(whole - part) <= 0.05


def noise_of_an_empty_batch(label=b"run", width=64, **changes):
    """The gradients that one step on an empty sample hands to the optimiser, in one vector."""
    privacy = plan(**changes)
    shape = LayerShape(128, 384, heads=4, kv_heads=4, head_dim=32, gated=True, activation="silu")
    size = MemorySpec.single(shape, layers=4, width=width).fetch_size
    grid = privacy.grid(size)
    noisy_X = add_noise(CellSum.zero(size, grid), privacy.noise_multiplier, stream(label))
    return (noisy_X * grid.spacing / privacy.divisor).numpy()


def looks_right(update, std):
    """Within 1 % of the declared std, mean zero, and normal by Kolmogorov-Smirnov."""
    right_std = abs(update.std() / std - 1) < 0.01
    right_mean = abs(update.mean()) < 5 * std / np.sqrt(update.size)
    return bool(right_std and right_mean and kstest(update / std, "norm").pvalue > 1e-3)


def test_noise_of_an_empty_batch_has_the_declared_distribution():
    assert looks_right(noise_of_an_empty_batch(noise_multiplier=1.3, clip=0.2, divisor=5.0), 1.3 * 0.2 / 5.0)


@pytest.mark.parametrize("wrong", [0.98, 1.02, 0.5, 0.0])
def test_noise_check_would_see_two_percent(wrong):
    update = noise_of_an_empty_batch(noise_multiplier=wrong)
    assert not looks_right(update, 1.0 * 0.1 / 4.0)


def test_noise_check_would_see_another_shape():
    uniform = np.random.default_rng(0).uniform(-np.sqrt(3), np.sqrt(3), 100_000)
    assert not looks_right(uniform, 1.0)


class Recorder(torch.optim.SGD):
    """Keeps the gradients that training hands to its optimiser."""

    seen: list[torch.Tensor]

    def __init__(self, parameters, **_settings):
        super().__init__(parameters, lr=0.0)
        Recorder.seen = []

    def step(self, closure=None):
        grads = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        Recorder.seen.append(torch.cat(grads).clone())


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr(dpsgd.torch.optim, "Adam", Recorder)
    return lambda data, **changes: (train(data, plan(**changes)), torch.stack(Recorder.seen).numpy())[1]


def test_training_on_no_record_is_noise_of_the_declared_std(recorded):
    updates = recorded(sequences([]), steps=400, noise_multiplier=1.3, clip=0.2, divisor=5.0)
    assert updates.shape == (400, LAYERS * 3 * WIDTH * D_MODEL)
    assert looks_right(updates.flatten(), 1.3 * 0.2 / 5.0)


def test_the_learning_rate_falls_to_its_final_share_whatever_the_cut(monkeypatch):
    rates, adam = [], dpsgd.torch.optim.Adam

    class Told(adam):
        def step(self):
            rates.append(self.param_groups[0]["lr"])
            return super().step()

    monkeypatch.setattr(dpsgd.torch.optim, "Adam", Told)
    states = []
    options = {"optimiser": Optimiser(lr=0.4, final=0.5)}
    train(sequences([1]), plan(steps=4), watch=lambda state: states.append(replace(state)), **options)
    assert rates == pytest.approx([0.4, 0.35, 0.3, 0.25])
    train(sequences([1]), plan(steps=4), state=states[1], **options)
    assert rates[4:] == pytest.approx([0.3, 0.25])


def test_steps_take_uncorrelated_noise(recorded):
    updates = recorded(sequences([]), steps=40)
    assert largest_correlation(updates) < 5 / np.sqrt(updates.shape[1])
    reused = updates.copy()
    reused[7] = reused[3]
    assert largest_correlation(reused) > 0.99


def largest_correlation(updates):
    return np.abs(np.corrcoef(updates) - np.eye(len(updates))).max()


def test_sampled_steps_are_noise_around_the_clipped_sum(recorded):
    """With every record in every sample and nothing learned, the mean update is the clipped sum over the divisor."""
    data = sequences(PER_RECORD)
    updates = recorded(data, steps=150, sampling_rate=1.0, clip=0.05, noise_multiplier=0.1, divisor=2.0)
    whole = engine_sum(anchor(), new_block(), data, np.ones(data.records, dtype=bool), 0.05)
    expected = whole.numpy() / 2.0
    std = 0.1 * 0.05 / 2.0
    assert np.abs(updates.mean(0) - expected).max() < 5 * std / np.sqrt(150)
    assert abs((updates - expected).std() / std - 1) < 0.01
    assert np.abs(expected).max() > 10 * std / np.sqrt(150)


def test_same_key_gives_the_same_bytes_whatever_the_global_seeds():
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 -- the point is that it changes nothing
        random.seed(seed)
        results.append(train(sequences(PER_RECORD)))
    assert torch.equal(*results)
    assert not torch.equal(results[0], train(sequences(PER_RECORD), label=b"another run"))


@pytest.mark.parametrize("records", [[], [1], PER_RECORD, [1] * 60])
def test_control_flow_is_the_same_for_every_set_of_records(monkeypatch, records):
    shapes, draw = [], dpsgd.rounded_gaussian

    def spy(stream, n, std):
        shapes.append((n, std))
        return draw(stream, n, std)

    monkeypatch.setattr(dpsgd, "rounded_gaussian", spy)
    ticks = []
    rows = train(sequences(records), progress=lambda step, steps: ticks.append((step, steps)))
    assert rows.shape == (LAYERS * 3 * WIDTH * D_MODEL,)
    assert ticks == [(1, 3), (2, 3), (3, 3)]
    assert shapes == [(rows.numel(), plan().grid(rows.numel()).std(1.0))] * 3


def test_a_step_beyond_the_charge_is_refused():
    with pytest.raises(BudgetExceeded):
        train(sequences([1]), plan(steps=4), meter=Meter(plan(steps=3).spend))
    with pytest.raises(BudgetExceeded):
        train(sequences([1]), plan(noise_multiplier=0.9), meter=Meter(plan().spend))


@pytest.mark.parametrize("engine", ["fused", "opacus"])
def test_training_leaves_no_trace_on_anchor_and_block(engine):
    model = anchor().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    block = warm_block()
    start = block.clone()
    memory = attach(model)
    data = sequences(PER_RECORD, shared=True)
    options = {"optimiser": Optimiser(lr=0.1), "runtime": RuntimeOptions(engine=engine)}
    assert not torch.equal(train_block(model, memory, spec(), block, data, plan(), stream(), **options), start)
    memory.detach()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert model.training
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
        assert not {"activations", "max_batch_len", "autograd_grad_sample_hooks"} & set(vars(module))
    assert torch.equal(block, start)
    assert block.grad is None


def test_training_learns_without_noise():
    data = sequences([1] * 8)
    privacy = plan(sampling_rate=1.0, steps=60, clip=1.0, noise_multiplier=0.0, divisor=8.0)
    block_X = train(data, privacy)
    model = anchor().eval()
    memory = attach(model)
    losses = []
    for sources in ([], [make_shared_source(spec(), block_X)]):
        with torch.no_grad(), memory.using(*sources):
            losses.append(float(token_losses(model(readable(data.tokens_NT)).logits, data.tokens_NT)[0].sum()))
    assert losses[1] < 0.96 * losses[0]
