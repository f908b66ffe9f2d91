"""A run that was cut goes on to the same bytes, measures by its plan, and holds its folder alone."""

import pytest
import torch

from fedmem.anchor.presets import new_anchor
from fedmem.errors import Busy, QualityGateFailed, VerificationFailed, VersionMismatch
from fedmem.memory.attach import attach
from fedmem.training import resumable
from fedmem.training.bank_state import BankStream
from fedmem.training.lazy_adamw import LazyAdamW
from fedmem.training.loop import BankTrainer, Trainer
from fedmem.training.packed_dataset import Rows
from fedmem.training.resumable import ResumableRun
from fedmem.training.settings import Settings, TrainedParts
from fedmem.training.state import Watch
from fedmem.training.working_set import DiskLevel
from tests.coordinator.workplace import Cut, cut_at
from tests.training.test_loop import PACKED, ROW_PATHS, SPEC

SETTINGS = Settings(steps=6, batch=4, lr=1e-3, memory_lr=1e-2)
START = BankStream.new(SPEC, 2)
HELDOUT = Rows(PACKED, ROW_PATHS).select([number < 4 for number in range(len(PACKED))])
NO_ROWS = HELDOUT.select([False] * 4)


def drive(folder, watch=None, inputs="inputs", settings=SETTINGS):
    """One process of a co-training; the curve and the blocks at its end."""
    with ResumableRun(folder, inputs, "cotrain") as run:
        levels, generic = run.levels(START), LazyAdamW(START.generic[None].clone())
        memory, parts = attach(model := new_anchor("nano", 320, 0)), TrainedParts(levels=frozenset({1, 2}))
        bank = BankTrainer(memory, SPEC, levels, generic, ROW_PATHS, settings, parts)
        trace = run.drive(Trainer(model, PACKED, settings, 3, bank), HELDOUT, watch or Watch())
        blocks = [torch.cat(list(run.trained(START).pieces(level))) for level in (1, 2)]
        return trace.curve, blocks, [type(level) for level in levels]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return drive(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(("on_disk", "kind"), [(resumable.ON_DISK, LazyAdamW), (0, DiskLevel)])
def test_a_cut_run_ends_with_the_curve_and_the_blocks_of_a_whole_one(whole, tmp_path, monkeypatch, on_disk, kind):
    monkeypatch.setattr(resumable, "ON_DISK", on_disk)
    for at in (1, 3):
        with pytest.raises(Cut):
            drive(tmp_path, Watch(cut_at(at)))
    curve, blocks, kinds = drive(tmp_path)
    assert kinds == [kind, kind]
    assert curve == whole[0]
    assert all(torch.equal(a, b) for a, b in zip(blocks, whole[1], strict=True))


def test_a_cut_between_the_curve_and_its_checkpoint_leaves_no_point_twice(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        saved, calls = resumable.save_checkpoint, []

        def cut_at_the_third(*arguments):
            calls.append(arguments)
            if len(calls) == 3:
                raise Cut
            saved(*arguments)

        patch.setattr(resumable, "save_checkpoint", cut_at_the_third)
        with pytest.raises(Cut):
            drive(tmp_path)
    assert drive(tmp_path)[0] == whole[0]


def test_the_curve_begins_before_the_first_step_and_ends_with_the_last(whole):
    assert [(p["split"], p["step"]) for p in whole[0]][:3] == [("heldout", 0), ("train", 1), ("heldout", 1)]
    assert whole[0][-1]["step"] == SETTINGS.steps


def test_a_finished_run_takes_no_step_and_removed_state_begins_anew(whole, tmp_path):
    drive(tmp_path)
    curve, blocks, _ = drive(tmp_path, Watch(cut_at(1)))
    assert curve == whole[0]
    assert not torch.equal(blocks[0], torch.cat(list(START.pieces(1))))
    with ResumableRun(tmp_path, "inputs", "cotrain") as run:
        run.remove_state()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock"]
    with pytest.raises(Cut):
        drive(tmp_path, Watch(cut_at(1)))


def test_state_of_other_inputs_is_refused(tmp_path):
    with pytest.raises(Cut):
        drive(tmp_path, Watch(cut_at(3)))
    with pytest.raises(VersionMismatch, match="other inputs"):
        drive(tmp_path, inputs="others")


def test_a_missing_level_on_disk_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(resumable, "ON_DISK", 0)
    with pytest.raises(Cut):
        drive(tmp_path, Watch(cut_at(3)))
    (tmp_path / "level-1.state").unlink()
    with pytest.raises(VerificationFailed, match=r"level-1\.state is missing"):
        drive(tmp_path)


def test_one_process_at_a_time(tmp_path):
    with ResumableRun(tmp_path, "inputs", "a"), pytest.raises(Busy, match="training"):
        ResumableRun(tmp_path, "inputs", "a")
    ResumableRun(tmp_path, "inputs", "a").__exit__(None, None, None)


def test_a_loss_that_is_not_finite_ends_the_run_before_a_checkpoint(tmp_path):
    with ResumableRun(tmp_path, "inputs", "anchor") as run:
        settings = Settings(steps=40, batch=4, lr=1e30)
        trainer = Trainer(new_anchor("nano", 320, 0), PACKED, settings, 3)
        with pytest.raises(QualityGateFailed, match="lower learning rate"):
            run.drive(trainer, NO_ROWS, Watch())
    assert trainer.done < 40
