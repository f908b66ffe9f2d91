"""Releases: what was written is what is loaded, and a changed file is found."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fedmem.anchor.presets import new_anchor
from fedmem.anchor.tokenizer import train_tokenizer
from fedmem.coordinator.examine import verify_release
from fedmem.errors import NothingMatched, Refused, VerificationFailed, VersionMismatch
from fedmem.memory.sites import spec_for
from fedmem.routing.tree import Tree
from fedmem.training.bank_state import BankStream
from fedmem.training.release import Release

SPEC = spec_for(new_anchor("nano", 300, 1), "ffn", 2, (4,))


@pytest.fixture
def written(tmp_path):
    model, tokenizer = new_anchor("nano", 300, 1), train_tokenizer(["a text"], 300)
    tree = Tree(2, 1, (np.eye(2, 8, dtype=np.float32),))
    release = Release.write(tmp_path, model, tokenizer, tree, "e" * 64, BankStream.new(SPEC, 3))
    return release, model


def test_a_release_gives_back_its_parts(written):
    release, model = written
    loaded = Release.load(release.root)
    tokens = torch.tensor([[1, 5, 7]])
    with torch.no_grad():
        assert torch.equal(loaded.anchor()(tokens).logits, model.eval()(tokens).logits)
    assert loaded.spec == SPEC
    assert loaded.root.name == loaded.digest
    assert loaded.tokenizer.encode("a text").ids == release.tokenizer.encode("a text").ids
    assert loaded.bank.fetch((1,)).shape == (2 * 3 * 4 * 64,)


def test_the_digest_follows_the_content(written, tmp_path):
    release, model = written
    again = Release.write(tmp_path, model, release.tokenizer, release.tree, "e" * 64, BankStream.new(SPEC, 3))
    other = Release.write(tmp_path, model, release.tokenizer, release.tree, "e" * 64, BankStream.new(SPEC, 4))
    assert again.digest == release.digest != other.digest


@pytest.mark.parametrize("name", ["anchor/model.safetensors", "bank/level-1*.safetensors", "release.json"])
def test_a_changed_file_is_found(written, name):
    path = next(written[0].root.glob(name))
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(VerificationFailed, match="was changed"):
        Release.load(written[0].root)


def test_another_embedder_is_refused(written):
    assert written[0].check_embedder("e" * 64) is written[0]
    with pytest.raises(VersionMismatch, match="another embedder"):
        written[0].check_embedder("f" * 64)


def test_no_release_says_how_to_make_one(tmp_path):
    with pytest.raises(NothingMatched, match="sim run"):
        Release.load(tmp_path)


def test_a_bank_beside_another_anchor_is_refused(written, tmp_path):
    bank, release = BankStream.new(SPEC, 3), written[0]
    other = Release.write(tmp_path, new_anchor("nano", 300, 9), release.tokenizer, release.tree, "e" * 64, bank)
    shutil.rmtree(other.root / "bank")
    shutil.copytree(written[0].root / "bank", other.root / "bank")
    with pytest.raises(VersionMismatch, match="another anchor"):
        _ = other.bank
    assert written[0].bank.fetch((1,)).dtype == torch.bfloat16


def test_an_anchor_that_names_code_to_run_is_refused(written, tmp_path):
    model, release = written[1], written[0]
    model.config.auto_map = {"AutoModelForCausalLM": "strange.StrangeModel"}
    named = Release.write(tmp_path, model, release.tokenizer, release.tree, "e" * 64, BankStream.new(SPEC, 3))
    with pytest.raises(Refused, match="runs no code"):
        named.anchor()
    with pytest.raises(Refused, match="runs no code"):
        verify_release(named.root)


def test_links_and_a_dot_lead_to_the_release(written, tmp_path, monkeypatch):
    link = tmp_path / "newest"
    link.symlink_to(written[0].root)
    assert Release.load(link).digest == written[0].digest
    monkeypatch.chdir(written[0].root)
    assert Release.load(Path(".")).root == written[0].root.resolve()
    assert Release.load(Path("anchor/..")).digest == written[0].digest


def test_a_foreign_or_missing_file_is_named(written):
    root = written[0].root
    (root / "bank" / ".DS_Store").write_bytes(b"")
    with pytest.raises(VerificationFailed, match=r"bank/\.DS_Store does not belong"):
        Release.load(root)
    (root / "bank" / ".DS_Store").unlink()
    (root / "tokenizer.json").unlink()
    with pytest.raises(VerificationFailed, match=r"tokenizer\.json is missing"):
        Release.load(root)


@pytest.mark.parametrize(
    "text", ["", "{", "7", "[" * 100_000, "{}", '{"format":1}', '{"format":1,"files":[],"embedder":"e","memory":{}}']
)
def test_a_manifest_that_is_none_is_an_error_of_ours(tmp_path, text):
    for name in ("named-otherwise", hashlib.sha256(text.encode()).hexdigest()):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "release.json").write_text(text)
        with pytest.raises((VerificationFailed, VersionMismatch)):
            Release.load(folder)


@pytest.mark.parametrize("spoil", ["nan", "untied"])
def test_an_anchor_that_could_not_be_loaded_again_is_not_written(written, tmp_path, spoil):
    release, model = written
    if spoil == "nan":
        model.model.layers[1].mlp.up_proj.weight.data[3, 5] = float("nan")
    else:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 1)
    with pytest.raises(VerificationFailed, match="anchor"):
        Release.write(tmp_path / "new", model, release.tokenizer, release.tree, "e" * 64, BankStream.new(SPEC, 3))
    assert not (tmp_path / "new").exists()
