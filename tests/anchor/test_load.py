"""A model's folder from elsewhere: its weights are read, its code never runs, and nothing is asked."""

import json

import pytest
import torch

from fedmem.anchor.load import load_model, load_skeleton
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
