"""The folder of an anchor: written whole, read strictly, with a tokenizer that fits."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models

from fedmem.anchor.presets import new_anchor
from fedmem.anchor.tokenizer import train_tokenizer
from fedmem.errors import NothingMatched, Refused, StorageError, VerificationFailed, VersionMismatch
from fedmem.storage.files import Files
from fedmem.training.folder import fitting_tokenizer, load_anchor, save_anchor
from tests.anchor.tokenizers import KINDS
from tests.coordinator.workplace import TEXTS, contents, copy


@pytest.fixture(scope="module")
def anchor(tmp_path_factory):
    """The folder of an untrained anchor and its tokenizer."""
    folder = tmp_path_factory.mktemp("anchor") / "anchor-folder"
    folder.mkdir()
    save_anchor(folder, new_anchor("nano", 300, 1), train_tokenizer(TEXTS, 300))
    return folder


def test_folders_that_hold_no_fitting_anchor(anchor, tmp_path):
    with pytest.raises(NothingMatched, match="holds no anchor"):
        load_anchor(tmp_path)
    folder = copy(anchor, tmp_path)
    (folder / "anchor" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(VerificationFailed, match="cannot be read"):
        load_anchor(folder)
    config = folder / "anchor" / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"no-such-model"'))
    with pytest.raises(VerificationFailed, match="transformers knows"):
        load_anchor(folder)


def test_a_folder_that_names_code_to_run_is_refused(anchor, tmp_path):
    folder = copy(anchor, tmp_path)
    config = folder / "anchor" / "config.json"
    entry = {"auto_map": {"AutoConfig": "strange.StrangeConfig"}}
    config.write_text(json.dumps(json.loads(config.read_text()) | entry))
    with pytest.raises(Refused, match="runs no code"):
        load_anchor(folder)


def test_a_tokenizer_of_another_model_is_refused(anchor, tmp_path):
    folder = copy(anchor, tmp_path)
    train_tokenizer(TEXTS, 320).save(str(folder / "tokenizer.json"))
    with pytest.raises(VersionMismatch, match="more entries"):
        load_anchor(folder)
    plain = json.loads((anchor / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(plain | {"added_tokens": plain["added_tokens"][:1]}))
    with pytest.raises(VersionMismatch, match="ends a document"):
        load_anchor(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(VerificationFailed, match="no tokenizer"):
        load_anchor(folder)


def test_what_was_saved_is_loaded_also_from_the_folder_itself(anchor, tmp_path):
    model, tokenizer = load_anchor(anchor)
    ids = torch.tensor([tokenizer.encode(TEXTS[0]).ids])
    assert torch.equal(model.eval()(ids).logits, new_anchor("nano", 300, 1).eval()(ids).logits)
    flat = copy(anchor / "anchor", tmp_path)
    (flat / "tokenizer.json").write_bytes((anchor / "tokenizer.json").read_bytes())
    assert torch.equal(load_anchor(flat)[0].eval()(ids).logits, model(ids).logits)


def test_a_disk_that_refuses_leaves_the_old_anchor(anchor, tmp_path, monkeypatch):
    folder = copy(anchor, tmp_path)
    before = contents(folder)

    def full(*_args: object) -> None:
        raise StorageError("The disk is full.")

    monkeypatch.setattr(Files, "replace", full)
    with pytest.raises(StorageError):
        save_anchor(folder, new_anchor("nano", 300, 2), train_tokenizer(TEXTS, 300))
    assert {name: sha for name, sha in contents(folder).items() if not name.startswith(".writing")} == before


def test_truncation_and_padding_of_a_tokenizer_are_switched_off(tmp_path: Path):
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = fitting_tokenizer(tmp_path / "tokenizer.json", 300)
    assert loaded.encode(TEXTS[0]).ids == train_tokenizer(TEXTS, 300).encode(TEXTS[0]).ids


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers_of_every_kind_fit(kind, tmp_path):
    KINDS[kind]().save(str(tmp_path / "tokenizer.json"))
    assert fitting_tokenizer(tmp_path / "tokenizer.json", 400).get_vocab_size() <= 400


def test_a_tokenizer_that_fails_on_a_text_is_refused(tmp_path):
    tokenizer = Tokenizer(models.Unigram([("a", -1.0), ("</s>", 0.0)], None, False))
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(VerificationFailed, match="not know"):
        fitting_tokenizer(tmp_path / "tokenizer.json", 400)
