"""The held-out loss: the mean over predicted tokens, with the blocks of each row, and without a trace."""

import pytest
import torch

from fedmem.anchor.presets import new_anchor
from fedmem.memory.attach import attach
from fedmem.training import heldout
from fedmem.training.bank_state import BankState
from fedmem.training.heldout import heldout_loss
from fedmem.training.loop import Trainer, in_memory
from fedmem.training.packed_dataset import Rows
from fedmem.training.packing import packed_loss
from fedmem.training.settings import TrainedParts
from tests.training.test_loop import PACKED, ROW_PATHS, SETTINGS, SPEC, weights

ROWS = Rows(PACKED, ROW_PATHS)


@pytest.fixture
def model():
    return new_anchor("nano", 320, 0).eval()


@torch.no_grad()
def test_it_is_the_mean_over_all_predicted_tokens(model):
    trainer = Trainer(model, PACKED, SETTINGS, 1)
    expected = float(packed_loss(model, PACKED.tokens_MT, PACKED.positions_MT))
    assert heldout_loss(trainer, ROWS) == pytest.approx(expected, rel=1e-5)


def test_no_more_rows_are_read_than_the_limit_and_batches_change_nothing(model, monkeypatch):
    trainer, whole = Trainer(model, PACKED, SETTINGS, 1), heldout_loss(Trainer(model, PACKED, SETTINGS, 1), ROWS)
    monkeypatch.setattr(heldout, "HELDOUT_BATCH", 3)
    assert heldout_loss(trainer, ROWS) == pytest.approx(whole, rel=1e-5)
    monkeypatch.setattr(heldout, "HELDOUT_ROWS", 2)
    ends = Rows(PACKED, ROW_PATHS).select([number in (0, len(ROWS) - 1) for number in range(len(ROWS))])
    assert heldout_loss(trainer, ROWS) == heldout_loss(trainer, ends)


def test_the_blocks_of_each_row_count_the_generic_one_does_not_and_nothing_changes(model):
    def loss_of(change):
        state = BankState.new(SPEC, 2)
        change(state)
        bank = in_memory(attach(model), state, ROW_PATHS, SETTINGS, TrainedParts())
        loss = heldout_loss(Trainer(model, PACKED, SETTINGS, 1, bank), ROWS)
        bank.memory.detach()
        return loss, state

    before = weights(model).clone()
    bare, _ = loss_of(lambda state: None)
    assert loss_of(lambda state: state.generic.normal_())[0] == bare
    changed, state = loss_of(lambda state: state.levels[0].fill_(0.05))
    assert changed != bare
    assert (state.levels[0] == 0.05).all()
    assert torch.equal(weights(model), before)
