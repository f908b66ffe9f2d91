"""A bank is trained from its inputs alone: cut, resumed, or refused with its reason."""

import os

import pytest
import torch

from fedmem.cli import bank as cli_bank
from fedmem.coordinator.bank_training import train_bank
from fedmem.coordinator.examine import verify_release
from fedmem.errors import (
    StorageError,
    UsageError,
    VerificationFailed,
    VersionMismatch,
)
from fedmem.training import resumable as drive
from fedmem.training.plans import MODES
from fedmem.training.release import Release
from fedmem.training.state import Watch
from tests.coordinator.workplace import CORPUS, EMBEDDER, Cut, contents, cut_at, plan


@pytest.fixture(scope="module")
def cotrained(release, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cotrained")
    return folder, train(release, folder, plan("cotrain"))


def train(release, folder, how, watch=None, **extra):
    return train_bank(CORPUS, release.root, folder, how, EMBEDDER, watch or Watch(), **extra)


def test_cotraining_moves_anchor_and_bank_and_helps(release, cotrained):
    folder, facts = cotrained
    new = verify_release(folder / "releases" / facts["release"])
    assert (new.spec, new.tree.digest) == (release.spec, release.tree.digest)
    held = [point["loss"] for point in facts["curve"] if point["split"] == "heldout"]
    assert held[-1] < held[0]
    for before, after in zip(release.bank_state().levels, new.bank_state().levels, strict=True):
        assert not torch.equal(before, after)
    assert not torch.equal(*(next(one.anchor().parameters()) for one in (release, new)))


@pytest.mark.parametrize("on_disk", [drive.ON_DISK, 0])
def test_a_cut_cotraining_goes_on_to_the_same_bytes(release, cotrained, tmp_path, monkeypatch, on_disk):
    monkeypatch.setattr(drive, "ON_DISK", on_disk)
    for at in (1, 5):
        with pytest.raises(Cut):
            train(release, tmp_path, plan("cotrain"), Watch(cut_at(at)))
    again = train(release, tmp_path, plan("cotrain"))
    assert again["curve"] == cotrained[1]["curve"]
    assert contents(tmp_path / "releases") == contents(cotrained[0] / "releases")


def test_joint_starts_from_scratch(release, cotrained, tmp_path):
    facts = train(release, tmp_path / "a", plan("joint"))
    trained = Release.load(cotrained[0] / "releases" / cotrained[1]["release"])
    assert facts["curve"][0]["loss"] > cotrained[1]["curve"][0]["loss"] + 0.5
    # Neither the anchor's nor the blocks' values matter, only their shapes.
    assert train(trained, tmp_path / "b", plan("joint"))["curve"] == facts["curve"]


def test_a_damaged_checkpoint_or_trace_is_refused_and_left(release, tmp_path):
    with pytest.raises(Cut):
        train(release, tmp_path, plan("cotrain"), Watch(cut_at(4)))
    checkpoint, trace = tmp_path / "state" / "checkpoint.safetensors", tmp_path / "state" / "trace.json"
    whole = trace.read_bytes()
    trace.write_bytes(whole[:-4])
    with pytest.raises(VerificationFailed, match="damaged"):
        train(release, tmp_path, plan("cotrain"))
    trace.write_bytes(whole)
    data = bytearray(checkpoint.read_bytes())
    data[-1] ^= 1
    checkpoint.write_bytes(data)
    with pytest.raises(VerificationFailed, match="damaged"):
        train(release, tmp_path, plan("cotrain"))
    assert checkpoint.read_bytes() == data


def test_a_full_disk_leaves_a_state_that_goes_on(release, cotrained, tmp_path, monkeypatch):
    monkeypatch.setattr(drive, "ON_DISK", 0)
    with pytest.raises(Cut):
        train(release, tmp_path, plan("cotrain"), Watch(cut_at(4)))
    real = os.pwrite

    def full(file, data, at):
        if len(data) > 100:
            return real(file, data[: len(data) // 2], at)
        return real(file, data, at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StorageError, match="free some space"):
            train(release, tmp_path, plan("cotrain"))
    again = train(release, tmp_path, plan("cotrain"))
    assert again["release"] == cotrained[1]["release"]


def test_a_missing_level_file_is_told(release, tmp_path, monkeypatch):
    monkeypatch.setattr(drive, "ON_DISK", 0)
    with pytest.raises(Cut):
        train(release, tmp_path, plan("cotrain"), Watch(cut_at(4)))
    (tmp_path / "state" / "level-2.state").unlink()
    with pytest.raises(VerificationFailed, match="level-2"):
        train(release, tmp_path, plan("cotrain"))


def test_another_embedder_is_refused(release, tmp_path):
    other = type(EMBEDDER)(dim=32, seed=1)
    with pytest.raises(VersionMismatch, match="another embedder"):
        train_bank(CORPUS, release.root, tmp_path / "x", plan("cotrain"), other, Watch())
    assert not (tmp_path / "x").exists()


def test_modes(release, tmp_path):
    assert cli_bank.MODES == MODES
    with pytest.raises(UsageError, match="mode"):
        plan("sideways")
    with pytest.raises(UsageError, match="frozen and posthoc"):
        train(release, tmp_path, plan("cotrain"), subtrees=[0])
