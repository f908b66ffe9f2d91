"""The workshop: same inputs same bytes, also after a cut; other inputs and what does not fit are refused."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from fedmem.coordinator.bank_training import train_bank
from fedmem.coordinator.build import build_bank, train_anchor
from fedmem.coordinator.examine import describe_bank
from fedmem.errors import (
    Busy,
    QualityGateFailed,
    UsageError,
    VersionMismatch,
)
from fedmem.memory.attach import attach
from fedmem.memory.block import make_source
from fedmem.routing.router import route
from fedmem.training.corpus import Corpus
from fedmem.training.folder import load_anchor
from fedmem.training.resumable import ResumableRun
from fedmem.training.settings import Settings
from fedmem.training.state import Watch
from tests.coordinator.workplace import ANCHOR, BANK, CORPUS, EMBEDDER, TEXTS, Cut, contents, cut_at, plan


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


def test_the_placement_is_in_the_spec(anchor, tmp_path):
    late = build_bank(CORPUS, anchor[0], tmp_path, replace(BANK, placement="late"), EMBEDDER)
    assert late.spec.widths == ((0, 8), (0, 4))
    assert late.spec.bank_size == describe_bank(late.root).values


def test_an_architecture_that_memory_does_not_know_is_refused(anchor, tmp_path):
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"hidden_size": 32, "ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = OPTForCausalLM(OPTConfig(vocab_size=300, word_embed_proj_dim=32, **sizes))
    model.save_pretrained(tmp_path)
    shutil.copy(anchor[0] / "tokenizer.json", tmp_path)
    with pytest.raises(UsageError, match="opt"):
        build_bank(CORPUS, tmp_path, tmp_path / "out", BANK, EMBEDDER)
