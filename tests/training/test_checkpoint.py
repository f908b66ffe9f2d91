"""A resumed run ends with the bytes of one that was not; a damaged or foreign checkpoint is refused."""

import errno
import os

import pytest
import torch

from fedmem.anchor.presets import new_anchor
from fedmem.errors import StorageError, VerificationFailed, VersionMismatch
from fedmem.memory.attach import attach
from fedmem.training.bank_state import BankState
from fedmem.training.checkpoint import load_checkpoint, save_checkpoint, step_of
from fedmem.training.lazy_adamw import LazyAdamW
from fedmem.training.loop import BankTrainer, Trainer
from fedmem.training.settings import Settings, TrainedParts
from fedmem.training.working_set import DiskLevel
from tests.training.test_loop import PACKED, ROW_PATHS, SPEC

SETTINGS = Settings(steps=9, batch=4, lr=1e-3, memory_lr=1e-2)
MODES = {
    "pretrain": None,
    "cotrain": TrainedParts(levels=frozenset({1, 2})),
    "frozen": TrainedParts(False, frozenset({1, 2})),
}


def trainer(mode, folder=None, generation=None):
    """A trainer; with a folder, level 2 lies on disk: new, or as it was at `generation`."""
    model, trained = new_anchor("nano", 320, 0), MODES[mode]
    if trained is None:
        return Trainer(model, PACKED, SETTINGS, 3)
    state = BankState.new(SPEC, 2)
    levels = [LazyAdamW(blocks) for blocks in state.levels]
    if folder:
        path, shape = folder / "level-2.state", state.levels[1].shape
        levels[1] = (
            DiskLevel.create(path, [state.levels[1]], *shape, capacity=2)
            if generation is None
            else DiskLevel(path, *shape, generation=generation, capacity=2)
        )
    bank = BankTrainer(attach(model), SPEC, levels, LazyAdamW(state.generic[None]), ROW_PATHS, SETTINGS, trained)
    return Trainer(model, PACKED, SETTINGS, 3, bank, anchor=trained.anchor)


def result(done):
    values = [p.data.flatten() for p in done.model.parameters()]
    if done.bank:
        values += [level.read(torch.arange(n)).flatten() for level, n in zip(done.bank.levels, (3, 9), strict=True)]
        values.append(done.bank.generic.read(torch.zeros(1, dtype=torch.int64)).flatten())
    return torch.cat(values)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("disk", [False, True])
@pytest.mark.parametrize("further", [0, 2])
def test_a_resumed_run_ends_with_the_same_bytes(mode, disk, further, tmp_path):
    whole = trainer(mode)
    whole.run()
    folder = tmp_path if disk and mode != "pretrain" else None
    broken, path = trainer(mode, folder), tmp_path / "checkpoint.safetensors"
    for _ in range(4):
        broken.step()
    save_checkpoint(path, broken, "inputs")
    for _ in range(further):  # lost in the crash
        broken.step()
    again = trainer(mode, folder, step_of(path, "inputs"))
    load_checkpoint(path, again, "inputs")
    assert again.done == 4
    again.run()
    assert torch.equal(result(again), result(whole))


@pytest.fixture
def saved(tmp_path):
    run, path = trainer("cotrain"), tmp_path / "checkpoint.safetensors"
    run.step()
    save_checkpoint(path, run, "inputs")
    return path


@pytest.mark.parametrize("at", [3, 200, -5])
def test_a_damaged_checkpoint_is_refused(saved, at):
    data = bytearray(saved.read_bytes())
    data[at] ^= 1
    saved.write_bytes(bytes(data))
    run = trainer("cotrain")
    before = result(run)
    with pytest.raises((VerificationFailed, VersionMismatch), match=r"damaged|other inputs"):
        load_checkpoint(saved, run, "inputs")
    assert torch.equal(result(run), before)


def test_a_truncated_checkpoint_is_refused(saved):
    saved.write_bytes(saved.read_bytes()[:-9])
    with pytest.raises(VerificationFailed, match="damaged"):
        step_of(saved, "inputs")


def test_a_checkpoint_of_other_inputs_or_another_model_is_refused(saved):
    with pytest.raises(VersionMismatch, match="other inputs"):
        load_checkpoint(saved, trainer("cotrain"), "others")
    with pytest.raises(VersionMismatch, match="another model"):
        load_checkpoint(saved, trainer("pretrain"), "inputs")


def test_a_full_disk_leaves_the_old_checkpoint(saved, monkeypatch):
    run, before = trainer("cotrain"), saved.read_bytes()
    run.step()

    def full(*_args):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="free some space"):
        save_checkpoint(saved, run, "inputs")
    assert saved.read_bytes() == before
