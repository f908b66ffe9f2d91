"""A model's folder from elsewhere: its weights are read, its code never runs, and nothing is asked."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedmem.anchor.load import is_tied_as_configured, load_model, load_skeleton
from fedmem.anchor.presets import new_anchor
from fedmem.errors import FedmemError, Refused, VerificationFailed

CODE = """
open({mark!r}, "w").write("ran")
from transformers import LlamaConfig, LlamaForCausalLM as StrangeModel
class StrangeConfig(LlamaConfig):
    model_type = "llama"
"""
NAMES_CODE = {"auto_map": {"AutoConfig": "strange.StrangeConfig", "AutoModelForCausalLM": "strange.StrangeModel"}}
loaders = pytest.mark.parametrize("load", [load_model, load_skeleton])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A pico anchor beside a Python file; stdin would agree to whatever is asked."""

    def agree(*_):
        (tmp_path / "asked").touch()
        return "y"

    monkeypatch.setattr("builtins.input", agree)
    new_anchor("pico", 300, 1).save_pretrained(tmp_path / "anchor")
    (tmp_path / "anchor" / "strange.py").write_text(CODE.format(mark=str(tmp_path / "ran")))
    yield tmp_path / "anchor"
    assert not {"asked", "ran"} & {path.name for path in tmp_path.iterdir()}


def change(folder, **entries):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_weights_are_those_that_were_saved(folder):
    tokens = torch.tensor([[1, 5, 7]])
    with torch.no_grad():
        assert torch.equal(load_model(folder).eval()(tokens).logits, new_anchor("pico", 300, 1).eval()(tokens).logits)
    assert load_model(folder, dtype=torch.float64).dtype == torch.float64
    assert {p.device.type for p in load_skeleton(folder).parameters()} == {"meta"}


@loaders
@pytest.mark.parametrize("model_type", ["llama", "strange"])
def test_a_configuration_that_names_code_is_refused(folder, load, model_type):
    change(folder, model_type=model_type, **NAMES_CODE)
    with pytest.raises(Refused, match="runs no code"):
        load(folder)


@loaders
def test_a_kernel_of_the_hub_is_refused(folder, load):
    change(folder, attn_implementation="kernels-community/flash-attn")
    with pytest.raises(Refused, match="attn_implementation"):
        load(folder)


@loaders
def test_an_unknown_model_type_says_why(folder, load):
    change(folder, model_type="strange")
    with pytest.raises(VerificationFailed, match="model type"):
        load(folder)


@loaders
@pytest.mark.parametrize("text", ["", "[]", "7", "{}", "{"])
def test_a_configuration_that_is_none_is_an_error_of_ours(folder, load, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(FedmemError):
        load(folder)


def test_pickled_weights_are_not_read(folder):
    weights = new_anchor("pico", 300, 1).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(VerificationFailed, match="safetensors"):
        load_model(folder)


DOWN = "model.layers.1.mlp.down_proj.weight"
NAN = torch.full((32, 96), float("nan"))
UNFIT = {
    "renamed by torch.compile": lambda tensors: {f"_orig_mod.{name}": value for name, value in tensors.items()},
    "one missing": lambda tensors: {name: value for name, value in tensors.items() if name != DOWN},
    "one too many": lambda tensors: tensors | {"strange.weight": torch.zeros(2)},
    "of another shape": lambda tensors: tensors | {DOWN: torch.zeros(32, 95)},
    "NaN": lambda tensors: tensors | {DOWN: NAN},
    "infinite": lambda tensors: tensors | {DOWN: 1 / torch.zeros(32, 96)},
    "integers": lambda tensors: tensors | {DOWN: torch.ones(32, 96, dtype=torch.int8)},
    "head of its own": lambda tensors: tensors | {"lm_head.weight": torch.ones(300, 32)},
}


@pytest.mark.parametrize("name", UNFIT)
def test_weights_that_do_not_fit_are_refused_by_name(folder, name, capfd):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(UNFIT[name](tensors), path, metadata={"format": "pt"})
    with pytest.raises(VerificationFailed, match=r"\.weight'|output layer"):
        load_model(folder)
    assert "LOAD REPORT" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "entries",
    [
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 3},
        {"vocab_size": 301},
        {"tie_word_embeddings": False},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"attn_implementation": "flash_attention_2"},
        {"num_attention_heads": 0},
        {"hidden_size": "wide"},
        {"hidden_act": "strange"},
    ],
    ids=str,
)
def test_a_configuration_that_does_not_fit_is_refused(folder, entries):
    change(folder, **entries)
    with pytest.raises(VerificationFailed, match=r"config\.json"):
        load_model(folder)


def test_a_head_under_the_name_of_its_embedding_or_the_other_way_round_is_tied(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    assert is_tied_as_configured(load_model(folder))


@pytest.mark.parametrize("shard", ["../model.safetensors", "pytorch_model.bin"])
def test_only_safetensors_of_the_folder_are_read(folder, shard):
    torch.save(new_anchor("pico", 300, 1).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(new_anchor("pico", 300, 1).state_dict(), shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(VerificationFailed, match="beside it"):
        load_model(folder)


def test_an_adapter_is_no_model(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(VerificationFailed, match="Merge"):
        load_model(folder)
