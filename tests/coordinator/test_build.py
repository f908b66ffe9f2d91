"""The workshop: same inputs same bytes, also after a cut; other inputs and what does not fit are refused."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch

from fedmem.anchor.presets import new_anchor
from fedmem.cli import bank as cli_bank
from fedmem.coordinator.bank_training import train_bank
from fedmem.coordinator.build import build_bank, train_anchor
from fedmem.coordinator.examine import describe, verify
from fedmem.errors import (
    Busy,
    NothingMatched,
    QualityGateFailed,
    StorageError,
    UsageError,
    VerificationFailed,
    VersionMismatch,
)
from fedmem.memory.attach import attach
from fedmem.memory.block import make_source
from fedmem.memory.sites import spec_for
from fedmem.routing.router import route
from fedmem.routing.tree import Tree
from fedmem.training import resumable as drive
from fedmem.training.bank_state import BankState
from fedmem.training.corpus import Corpus
from fedmem.training.folder import load_anchor
from fedmem.training.plans import MODES
from fedmem.training.release import Release
from fedmem.training.resumable import ResumableRun
from fedmem.training.settings import Settings
from fedmem.training.state import Watch
from tests.coordinator.workplace import ANCHOR, BANK, CORPUS, EMBEDDER, TEXTS, Cut, contents, copy, cut_at, plan


@pytest.fixture(scope="module")
def anchor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("anchor")
    return folder, train_anchor(CORPUS, folder, ANCHOR, Watch())


@pytest.fixture(scope="module")
def release(anchor, tmp_path_factory):
    return build_bank(CORPUS, anchor[0], tmp_path_factory.mktemp("bank"), BANK, EMBEDDER)


@pytest.fixture(scope="module")
def cotrained(release, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cotrained")
    return folder, train(release, folder, plan("cotrain"))


def train(release, folder, how, watch=None, **extra):
    return train_bank(CORPUS, release.root, folder, how, EMBEDDER, watch or Watch(), **extra)


# Anchor


def test_an_anchor_learns_and_tells_its_curve(anchor):
    folder, facts = anchor
    held = [point["loss"] for point in facts["curve"] if point["split"] == "heldout"]
    assert held[-1] < held[0] - 0.5
    assert [p["step"] for p in facts["curve"] if p["split"] == "train"] == list(range(1, 13))
    assert facts["tokens"] > 0
    assert facts == json.loads((folder / "training.json").read_text())
    assert sorted(path.name for path in (folder / "state").iterdir()) == ["inputs.json", "lock", "tokenizer.json"]


def test_a_cut_anchor_goes_on_to_the_same_bytes(anchor, tmp_path):
    for at in (1, 6):
        with pytest.raises(Cut):
            train_anchor(CORPUS, tmp_path, ANCHOR, Watch(cut_at(at)))
    again = train_anchor(CORPUS, tmp_path, ANCHOR, Watch())
    assert again["curve"] == anchor[1]["curve"]
    for part in ("anchor", "tokenizer.json"):
        paths = [folder / part for folder in (tmp_path, anchor[0])]
        assert len({str(contents(p)) if p.is_dir() else p.read_bytes() for p in paths}) == 1


def test_a_finished_folder_gives_what_there_is_and_refuses_other_inputs(anchor):
    folder, facts = anchor
    assert train_anchor(CORPUS, folder, ANCHOR, Watch(cut_at(1))) == facts
    with pytest.raises(VersionMismatch, match=r"other inputs \(seed\)"):
        train_anchor(CORPUS, folder, replace(ANCHOR, seed=8), Watch())
    with pytest.raises(VersionMismatch, match="corpus"):
        train_anchor(Corpus.of(TEXTS[:40]), folder, ANCHOR, Watch())


def test_bad_plans_make_no_folder(tmp_path):
    for bad in (replace(ANCHOR, preset="huge"), replace(ANCHOR, length=4096), replace(ANCHOR, length=1)):
        with pytest.raises(UsageError):
            train_anchor(CORPUS, tmp_path / "none", bad, Watch())
    assert not (tmp_path / "none").exists()
    with pytest.raises(UsageError, match="at least 258"):
        train_anchor(CORPUS, tmp_path / "none", replace(ANCHOR, vocabulary=100), Watch())


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    settings = Settings(steps=40, batch=4, lr=1e30)
    with pytest.raises(QualityGateFailed, match="lower learning rate"):
        train_anchor(CORPUS, tmp_path, replace(ANCHOR, settings=settings), Watch())


def test_a_second_process_is_told_so(release, tmp_path):
    with ResumableRun(tmp_path / "state", "x", "anchor"), pytest.raises(Busy, match="training"):
        train(release, tmp_path, plan("cotrain"))


# A new bank


def test_a_new_bank_changes_nothing(anchor, release):
    model, state = release.anchor(), release.bank_state()
    tokens = torch.tensor([release.tokenizer.encode(TEXTS[0]).ids])
    paths = route(release.tree, EMBEDDER.embed(TEXTS[:1]))
    memory, expected = attach(model), load_anchor(anchor[0])[0].eval()(tokens).logits
    with memory.using(make_source(state.spec, state.fetch_many(paths))):
        assert torch.equal(model(tokens).logits, expected)


def test_a_bank_is_described(anchor, release):
    facts = describe(release.root)
    assert (facts.kind, facts.branching, facts.anchor) == ("ffn", 3, "LlamaForCausalLM")
    assert [(one.blocks, one.widths) for one in facts.levels] == [(3, (4, 4)), (9, (2, 2))]
    assert facts.fetched_values == 6 * 2 * 3 * 64
    assert facts.values == (3 * 4 + 9 * 2) * 2 * 3 * 64
    assert facts.anchor_parameters == anchor[1]["parameters"]
    assert facts.share == pytest.approx(facts.fetched_values / facts.anchor_parameters)


def test_the_placement_is_in_the_spec(anchor, tmp_path):
    late = build_bank(CORPUS, anchor[0], tmp_path, replace(BANK, placement="late"), EMBEDDER)
    assert late.spec.widths == ((0, 8), (0, 4))
    assert late.spec.bank_size == describe(late.root).values


def test_an_architecture_that_memory_does_not_know_is_refused(anchor, tmp_path):
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"hidden_size": 32, "ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = OPTForCausalLM(OPTConfig(vocab_size=300, word_embed_proj_dim=32, **sizes))
    model.save_pretrained(tmp_path)
    shutil.copy(anchor[0] / "tokenizer.json", tmp_path)
    with pytest.raises(UsageError, match="opt"):
        build_bank(CORPUS, tmp_path, tmp_path / "out", BANK, EMBEDDER)


# A trained bank


def test_cotraining_moves_anchor_and_bank_and_helps(release, cotrained):
    folder, facts = cotrained
    new = verify(folder / "releases" / facts["release"])
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


# Verification


def test_a_changed_file_does_not_verify(release, tmp_path):
    folder = copy(release.root, tmp_path)
    path = next((folder / "bank").glob("level-2*"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(VerificationFailed, match="was changed"):
        verify(folder)


@pytest.mark.parametrize(
    ("preset", "kind", "branching", "levels", "vocabulary", "fault"),
    [
        ("tiny", "ffn", 3, 2, 300, "another geometry"),
        ("nano", "ffn", 2, 2, 300, "branching or depth"),
        ("nano", "ffn", 3, 1, 300, "branching or depth"),
        ("nano", "ffn", 3, 2, 290, "more entries"),
    ],
)
def test_parts_that_do_not_fit_do_not_verify(release, tmp_path, preset, kind, branching, levels, vocabulary, fault):
    # A release written with a right manifest over parts that never belonged together.
    model = new_anchor("nano", vocabulary, 1)
    spec = spec_for(new_anchor(preset, vocabulary, 1), kind, branching, (2,) * levels)
    tree = Tree(release.tree.branching, release.tree.levels, release.tree.centroids)
    state = BankState.new(spec, 1)
    made = Release.write(tmp_path, model, release.tokenizer, tree, EMBEDDER.digest, state.stream())
    with pytest.raises(VerificationFailed, match=fault):
        verify(made.root)
    with pytest.raises(VerificationFailed, match=fault):
        train(made, tmp_path / "out", plan("frozen"))


def test_where_there_is_no_release(tmp_path):
    with pytest.raises(NothingMatched, match="holds no release"):
        verify(tmp_path)
