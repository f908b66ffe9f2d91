"""Load a Hugging Face model from a folder that is not trusted.

Invariants
- No code of the folder runs, the user is asked nothing, and no kernel that the configuration names is fetched.
- Only safetensors weights are read, and nothing outside the folder.
- Weights and configuration fit: no tensor is missing, left over, of another shape or not finite, and no value is drawn
  at random. Quantised weights and adapters are refused.

    model = load_model(folder, dtype=torch.float32)
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from fedmem.errors import FedmemError, Refused, VerificationFailed

FOLDER_ONLY: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_SHOWN = 3  # names of tensors in an error
_PLAIN = ("F64", "F32", "F16", "BF16")  # types of weights, as safetensors names them


def load_model(folder: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Return the causal language model in a folder.

    Args:
        folder: holds config.json and safetensors weights.
        dtype: of the parameters; None leaves it to the folder's configuration.

    Raises:
        Refused: the configuration names code to run.
        VerificationFailed: configuration or weights are missing, damaged, quantised, or of a type that transformers
            does not know; or they do not fit each other, or a weight is not finite.
    """
    # Tensors of another shape are reported with all others below, and not by an error of transformers.
    options: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    options |= FOLDER_ONLY if dtype is None else FOLDER_ONLY | {"dtype": dtype}
    with _readable(folder), _quiet():
        _check_config(folder)
        _check_files(folder)
        model, report = AutoModelForCausalLM.from_pretrained(folder, **options)
        _check_report(folder, report)
        check_weights(model, str(folder))
    loaded: PreTrainedModel = model
    return loaded


def load_skeleton(folder: Path) -> PreTrainedModel:
    """Return the model in a folder without its weights, on the device `meta`.

    Args:
        folder: holds config.json.

    Raises:
        Refused: the configuration names code to run.
        VerificationFailed: the configuration is missing, damaged, or of a type that transformers does not know.
    """
    with _readable(folder), torch.device("meta"):
        _check_config(folder)
        config = AutoConfig.from_pretrained(folder, **FOLDER_ONLY)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def check_weights(model: PreTrainedModel, place: str) -> None:
    """Check that a model can be saved and loaded again without loss.

    Args:
        model: a causal language model with its weights.
        place: names the model in the error.

    Raises:
        VerificationFailed: a weight is not finite, or the output layer differs from the embedding although the
            configuration ties them.
    """
    tensors = model.state_dict()
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise VerificationFailed(f"Weights of {place} are NaN or infinite: {_names(broken)}. Use a sound model.")
    if not is_tied_as_configured(model):
        raise VerificationFailed(
            f"The output layer of {place} differs from its embedding, but its configuration ties them. Set "
            "tie_word_embeddings to false in its config.json."
        )


def is_tied_as_configured(model: Any) -> bool:
    """Return False if the configuration ties output layer and embedding, but their weights differ.

    Args:
        model: a Hugging Face causal language model.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if not model.config.tie_word_embeddings or head is None:
        return True
    return head.weight is embedding.weight or torch.equal(head.weight, embedding.weight)


def _check_config(folder: Path) -> None:
    """Raise Refused if the configuration names code to run, or VerificationFailed if the model cannot be loaded."""
    config = json.loads((folder / "config.json").read_bytes())
    # A "/" names a kernel of the hub, which transformers would fetch and run.
    if "auto_map" in config or "/" in str(config.get("attn_implementation")):
        raise Refused(
            f"{folder / 'config.json'} names code to run (auto_map or attn_implementation), and fedmem runs no code of "
            "a model's folder. If transformers' own class of the model will do, remove that entry."
        )
    if config.get("model_type") not in CONFIG_MAPPING:
        raise VerificationFailed(
            f"{folder / 'config.json'} is of a model type that transformers does not know, and fedmem runs no code of "
            "a model's folder. Use a model of a type that transformers knows."
        )
    if config.get("quantization_config") or config.get("compression_config"):
        raise VerificationFailed(
            f"{folder / 'config.json'} describes quantised weights (quantization_config), and memory needs plain ones. "
            "Use the model in float32, float16 or bfloat16."
        )


def _check_files(folder: Path) -> None:
    """Raise VerificationFailed if transformers would read other weights than the safetensors files of the folder."""
    if (folder / "adapter_config.json").exists():
        raise VerificationFailed(f"{folder} holds an adapter (adapter_config.json). Merge it into its model first.")
    index = folder / "model.safetensors.index.json"
    names = set(json.loads(index.read_bytes())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    foreign_names = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    if foreign_names:
        raise VerificationFailed(f"{index} names {_names(foreign_names)}. Only safetensors files beside it are read.")
    for name in names:
        _check_types(folder / name)


def _check_types(path: Path) -> None:
    """Raise VerificationFailed if a weight is of an integer type or 8 bits wide: transformers would cast it."""
    with safe_open(path, framework="pt") as file:
        weights = [name for name in file.offset_keys() if name.endswith("weight")]
        odd_weights = [name for name in weights if file.get_slice(name).get_dtype() not in _PLAIN]
    if odd_weights:
        raise VerificationFailed(
            f"{path} holds quantised weights: {_names(odd_weights)}. Use the model in float32, float16 or bfloat16."
        )


def _check_report(folder: Path, report: dict[str, Any]) -> None:
    """Raise VerificationFailed if the weights do not fit the configuration, by transformers' report of the loading."""
    kinds = {
        "missing": report["missing_keys"],
        "not of this configuration": report["unexpected_keys"],
        "of another shape": [name for name, *_ in report["mismatched_keys"]],
    }
    faults = [f"{kind}: {_names(names)}" for kind, names in kinds.items() if names]
    if faults:
        raise VerificationFailed(
            f"The weights in {folder} do not fit its config.json. Tensors that are {'; '.join(faults)}. Save the model "
            "again by save_pretrained; one that was compiled or wrapped is unwrapped first."
        )


def _names(names: Iterable[str]) -> str:
    """Return the first names for an error, quoted and cut, since they come from a foreign file."""
    ordered = sorted(names)
    shown = ", ".join(repr(name[:80]) for name in ordered[:_SHOWN])
    return shown if len(ordered) <= _SHOWN else f"{shown} and {len(ordered) - _SHOWN} more"


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except FedmemError:
        raise
    # transformers raises errors of many classes for a damaged folder, and its quantisers and kernels raise others.
    except Exception as error:
        raise VerificationFailed(
            f"The model in {folder} cannot be read; it needs a config.json that transformers knows and whole "
            "safetensors weights."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing its own report beside our error."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
