"""Removing a record changes the sum of a step by that record's own cells, to the last bit, and by nothing else.

Neighbours are built through the engines: every kind of memory, both engines, ordinary records, and records that are
made so that the gradients of their tokens cancel or are huge.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from fedmem.anchor.presets import Shape, new_anchor
from fedmem.anchor.tokenizer import PAD
from fedmem.memory.attach import attach
from fedmem.memory.block import make_source
from fedmem.memory.sites import spec_for
from fedmem.privacy.dpsgd import clipped_sum
from fedmem.privacy.gradients import PrivateSequences, RuntimeOptions, batch_loss, frozen, per_record
from fedmem.privacy.grid import Grid
from tests.privacy.models import LENGTH, VOCAB, anchor, spec, warm_block
from tests.privacy.reference import length

KINDS = ("ffn", "lora_ffn", "lora_qk", "lora_vo", "kv")
ENGINES = [(kind, "fused") for kind in KINDS] + [("ffn", "opacus")]
RECORDS = ("plain", "short", "one_token", "padding", "duplicate", "long", "alternating", "constant")


def tokens(kind, random):
    """The sequences of one record."""
    row_T = torch.full((LENGTH,), PAD)
    size = {"one_token": 1, "padding": 0, "plain": LENGTH, "short": int(random.integers(2, LENGTH))}.get(kind, LENGTH)
    row_T[:size] = torch.from_numpy(random.integers(1, VOCAB, size))
    if kind == "alternating":  # two tokens in turns: gradients of neighbouring tokens cancel
        row_T[::2], row_T[1::2] = row_T[0].clone(), row_T[1].clone()
    if kind == "constant":
        row_T[:] = row_T[0].clone()
    return [row_T.clone() for _ in range(int(random.integers(5, 20)) if kind == "long" else 1)]


def data_of(rows):
    record_N = np.repeat(np.arange(len(rows)), [len(record) for record in rows])
    return PrivateSequences(torch.stack([row_T for record in rows for row_T in record]), record_N, len(rows))


@dataclass(frozen=True)
class Setting:
    """One engine over one block: `scale` makes the gradients small, ordinary or huge."""

    kind: str
    engine: str
    clip: float
    scale: float = 1.0
    dtype: torch.dtype = torch.float32
    bf16: bool = False

    def sums(self, rows, choices):
        """The cells of the sum for each choice of the records."""
        of, model = spec(kind=self.kind), anchor().to(self.dtype)
        block_X, grid = self.scale * warm_block(of=of).to(self.dtype), Grid.fitting(self.clip, 1.0, of.fetch_size, 1000)
        runtime = RuntimeOptions(4, self.bf16, self.engine)
        for chosen in choices:
            data = data_of([rows[number] for number in chosen])
            memory = attach(model)
            with frozen(model), per_record(model, memory, of, data, runtime) as gradients:
                cells_X = clipped_sum(gradients, block_X, data, np.ones(len(chosen), bool), grid).cells_X
            memory.detach()
            yield cells_X, grid


def check_removals(setting, kinds, seed):
    """Remove each record in turn: return the number of removals, and of records that were scaled to the clip norm."""
    random = np.random.default_rng(seed)
    rows = [tokens(kind, random) for kind in kinds]
    everyone = list(range(len(rows)))
    choices = [everyone, *([n for n in everyone if n != removed] for removed in everyone), *([n] for n in everyone)]
    (whole, grid), *rest = setting.sums(rows, choices)
    at_the_norm = 0
    for (without, _), (alone, _) in zip(rest[: len(rows)], rest[len(rows) :], strict=True):
        assert torch.equal(whole - without, alone)
        assert length(alone) <= grid.cells**2
        at_the_norm += length(alone) > (0.999 * grid.cells) ** 2
    return len(rows), at_the_norm


@pytest.mark.parametrize(("kind", "engine"), ENGINES)
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e4])
def test_a_removal_is_the_record_s_own_vector(kind, engine, scale):
    removals, at_the_norm = check_removals(Setting(kind, engine, 1e-3, scale), RECORDS, 3)
    assert removals == len(RECORDS)
    assert at_the_norm >= 2 or scale != 1.0


@pytest.mark.parametrize("engine", ["fused", "opacus"])
def test_under_bf16_too(engine):
    """A changed micro-batch moved the gradients of others by 1e-3 clip norms."""
    check_removals(Setting("ffn", engine, 1e-3, bf16=True), RECORDS, 4)
    check_removals(Setting("ffn", engine, 1e-3, dtype=torch.bfloat16), RECORDS[:4], 5)


def test_a_pass_over_several_records_would_not_pass():
    """The negative control: in one pass under bf16, the gradient of a record changes when the other one leaves."""
    model = new_anchor(Shape(layers=2, d_model=64, ffn=192, heads=2), 512, 0)
    of, memory = spec_for(model, "ffn", 1, (16,)), attach(model)
    tokens_NT = torch.from_numpy(np.random.default_rng(0).integers(1, 512, (2, 24)))
    data = PrivateSequences(tokens_NT, np.arange(2), 2)
    block_X = warm_block(of=of)

    def gradients_of(numbers_B):
        leaf_BX = block_X.expand(len(numbers_B), -1).detach().requires_grad_()
        loss = batch_loss(model, memory, make_source(of, leaf_BX), data, numbers_B, True)
        return torch.autograd.grad(loss, leaf_BX)[0]

    with frozen(model):
        together, alone = gradients_of(np.array([0, 1])), gradients_of(np.array([1]))
    memory.detach()
    assert not torch.equal(together[1], alone[0])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "engine"), ENGINES)
def test_ten_thousand_removals(kind, engine):
    """Over all engines and kinds; each removal is exact."""
    removals, seed, target = 0, 0, -(-10_000 // len(ENGINES))
    while removals < target:
        random = np.random.default_rng(seed)
        scale, clip = 10.0 ** random.uniform(-3, 5), float(random.choice([1e-4, 0.02, 1.0]))
        removals += check_removals(Setting(kind, engine, clip, scale), RECORDS, 100 + seed)[0]
        seed += 1
