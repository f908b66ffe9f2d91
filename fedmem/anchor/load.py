"""Load a Hugging Face model from a folder that is not trusted.

Invariants
- No code of the folder runs, the user is asked nothing, and no kernel that the configuration names is fetched.
- Only safetensors weights are read, and nothing outside the folder.

    model = load_model(folder, dtype=torch.float32)
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from fedmem.errors import Refused, VerificationFailed

FOLDER_ONLY: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def load_model(folder: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Return the causal language model in a folder.

    Args:
        folder: holds config.json and safetensors weights.
        dtype: of the parameters; None leaves it to the folder's configuration.

    Raises:
        Refused: the configuration names code to run.
        VerificationFailed: configuration or weights are missing, damaged, or of a type that transformers does not know.
    """
    with _readable(folder):
        _check_config(folder)
        options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
        return AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **FOLDER_ONLY, **options)


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


def _check_config(folder: Path) -> None:
    """Raise Refused if the configuration names code to run, or VerificationFailed if the model type is not known."""
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


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, AttributeError, SafetensorError) as error:
        raise VerificationFailed(
            f"The model in {folder} cannot be read; it needs a config.json that transformers knows and whole "
            "safetensors weights."
        ) from error
