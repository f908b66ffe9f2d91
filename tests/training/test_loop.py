"""Pretraining and co-training: seeded, only what is fetched moves, frozen parts stay."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmem.anchor.presets import new_anchor
from fedmem.anchor.tokenizer import train_tokenizer
from fedmem.eval.perplexity import mean_loss, sequence_losses
from fedmem.memory.attach import attach
from fedmem.memory.sites import spec_for
from fedmem.training.bank_state import BankState
from fedmem.training.loop import cotrain, in_memory, pretrain
from fedmem.training.packing import pack
from fedmem.training.sequences import encode
from fedmem.training.settings import Settings, TrainedParts

TEXTS = [f"the {('red', 'blue', 'green')[n % 3]} house number {n} stands in row {n * 7 % 11}" for n in range(60)]
TOKENIZER = train_tokenizer(TEXTS, 320)
SEQUENCES = encode(TOKENIZER, TEXTS, 32)
PATHS = np.array([[n % 3, 3 * (n % 3) + n % 2] for n in range(60)])[SEQUENCES.document_N]
PACKED = pack(SEQUENCES, PATHS[:, -1])
ROW_PATHS = PATHS[PACKED.first_M]
SPEC = spec_for(new_anchor("nano", 320, 0), "ffn", 3, (4, 2))
SETTINGS = Settings(steps=4, batch=4, lr=1e-3, memory_lr=1e-2)


def trained(seed=1, what=None, paths=ROW_PATHS):
    model, state = new_anchor("nano", 320, 0), BankState.new(SPEC, 2)
    memory = attach(model)
    cotrain(model, memory, state, PACKED, paths, SETTINGS, seed, trained=what)
    memory.detach()
    return model, state


def weights(model):
    return torch.cat([p.data.flatten() for p in model.parameters()])


def test_pretraining_lowers_the_loss_and_follows_its_seed():
    losses, runs = [], []
    for _ in range(2):
        model = new_anchor("nano", 320, 0)
        pretrain(model, PACKED, Settings(steps=30, batch=8, lr=5e-3), 3, lambda _, loss: losses.append(loss))
        runs.append(weights(model))
    assert torch.equal(*runs)
    assert losses[29] < losses[0] - 1


def test_cotraining_follows_its_seed():
    (first, bank), (again, bank_again), (other, _) = trained(1), trained(1), trained(2)
    assert torch.equal(weights(first), weights(again))
    assert all(torch.equal(a, b) for a, b in zip(bank.levels, bank_again.levels, strict=True))
    assert not torch.equal(weights(first), weights(other))


@pytest.mark.parametrize("eps", [1e-8, 1e6])
def test_a_large_eps_keeps_anchor_and_blocks_near_where_they_were(eps):
    model, state = new_anchor("nano", 320, 0), BankState.new(SPEC, 2)
    before = [weights(model), *(level.clone() for level in state.levels)]
    settings = replace(SETTINGS, weight_decay=0.0, memory_weight_decay=0.0, eps=eps)
    cotrain(model, attach(model), state, PACKED, ROW_PATHS, settings, 1)
    moved = [float((new - old).abs().max()) for new, old in zip([weights(model), *state.levels], before, strict=True)]
    assert all(step < 1e-6 if eps > 1 else step > 1e-4 for step in moved)


def test_blocks_off_every_path_keep_every_bit():
    paths = np.zeros_like(ROW_PATHS)
    _, state = trained(paths=paths)
    fresh = BankState.new(SPEC, 2)
    for got, before in zip(state.levels, fresh.levels, strict=True):
        assert not torch.equal(got[0], before[0])
        assert torch.equal(got[1:], before[1:])


def test_the_generic_block_is_trained_in_its_share_only():
    _, state = trained(what=TrainedParts(levels=frozenset({1, 2}), generic=False))
    assert torch.equal(state.generic, BankState.new(SPEC, 2).generic)
    _, state = trained()
    assert not torch.equal(state.generic, BankState.new(SPEC, 2).generic)


def test_a_frozen_anchor_keeps_every_bit_and_levels_too():
    model, state = trained(what=TrainedParts(anchor=False, levels=frozenset({1}), generic=False))
    assert torch.equal(weights(model), weights(new_anchor("nano", 320, 0)))
    assert torch.equal(state.levels[1], BankState.new(SPEC, 2).levels[1])
    assert not torch.equal(state.levels[0], BankState.new(SPEC, 2).levels[0])


def test_a_loss_does_not_depend_on_batches():
    model, state = trained()
    memory = attach(model)
    losses = [
        mean_loss(sequence_losses(model, SEQUENCES.tokens_NT, memory, lambda n: [state.source(PATHS[n])], batch=size))
        for size in (1, 7, 64)
    ]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


def test_gradients_of_a_batch_are_those_of_each_block_alone():
    state, paths_BP = BankState.new(SPEC, 2), torch.tensor([[0, 1], [0, 2], [2, 7], [0, 1]])
    generic_B, way_BX = torch.tensor([False, False, True, False]), torch.randn(4, SPEC.fetch_size)
    bank = in_memory(None, state, ROW_PATHS, SETTINGS, TrainedParts())
    fetched = bank.leaf(paths_BP, generic_B, torch.device("cpu"))
    (fetched.leaf_BX * way_BX).sum().backward()
    (g_ids, g_grads), (ids_1, grads_1), (ids_2, grads_2) = fetched.gradients(SPEC)
    first, second = SPEC.split(way_BX)
    assert torch.equal(fetched.leaf_BX[2], state.generic)
    assert (g_ids.tolist(), ids_1.tolist(), ids_2.tolist()) == ([0], [0], [1, 2])
    torch.testing.assert_close(g_grads[0], way_BX[2])
    torch.testing.assert_close(grads_1[0], first[0] + first[1] + first[3])
    torch.testing.assert_close(grads_2, torch.stack([second[0] + second[3], second[1]]))
