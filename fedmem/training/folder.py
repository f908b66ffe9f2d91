"""Read and write the folder of an anchor: a Hugging Face model and its tokenizer.json.

The folder comes from `fedmem anchor train`, or from elsewhere.

Invariants
- No code of the folder runs. Only safetensors weights are read, in float32, and nothing outside the folder.
- Weights fit the configuration (`fedmem.anchor.load`).
- Model and tokenizer fit: every id of the tokenizer has an embedding in the model. The tokenizer has a token that ends
  a document, and encodes every text.
- The anchor is written completely or not at all.
"""

import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from fedmem.anchor.load import check_weights, load_model
from fedmem.anchor.tokenizer import end_of_document, load_tokenizer, text_ids
from fedmem.errors import NothingMatched, VerificationFailed, VersionMismatch
from fedmem.memory.sites import shape_of
from fedmem.storage.files import Files, storage_errors


def save_anchor(folder: Path, model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Write `folder/anchor` and `folder/tokenizer.json` durably.

    Args:
        folder: folder of the training; an older anchor there is replaced.
        model: the anchor.
        tokenizer: its tokenizer.

    Raises:
        StorageError: the disk refuses.
        VerificationFailed: a weight is not finite, or the output layer is not tied as the configuration says. Nothing
            is written.
    """
    check_weights(model, "the anchor")
    temporary, final = folder / ".writing", folder / "anchor"
    with storage_errors("write the anchor"):
        shutil.rmtree(temporary, ignore_errors=True)
        model.save_pretrained(temporary)
        for path in temporary.iterdir():
            Files().replace(path, path.read_bytes())
        shutil.rmtree(final, ignore_errors=True)
        Files().rename_folder(temporary, final)
    Files().replace(folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode())


def load_anchor(folder: Path) -> tuple[PreTrainedModel, Tokenizer]:
    """Load an anchor and its tokenizer.

    Args:
        folder: holds `tokenizer.json`; the model is in `folder/anchor`, or in `folder` itself.

    Returns:
        The model, float32, and its tokenizer.

    Raises:
        NothingMatched: the folder holds no anchor.
        Refused: the configuration names code to run.
        VerificationFailed: weights or tokenizer are damaged.
        UsageError: memory cannot be attached to this architecture.
        VersionMismatch: the tokenizer belongs to another model.
    """
    root = folder / "anchor" if (folder / "anchor" / "config.json").exists() else folder
    if not (root / "config.json").exists() or not (folder / "tokenizer.json").exists():
        raise NothingMatched(
            f"{folder} holds no anchor: it needs config.json, safetensors weights and tokenizer.json, as `fedmem "
            "anchor train` writes them."
        )
    model = load_model(root, dtype=torch.float32)
    shape_of(model)
    return model, fitting_tokenizer(folder / "tokenizer.json", model.config.vocab_size)


def fitting_tokenizer(path: Path, vocabulary: int) -> Tokenizer:
    """Load a tokenizer, and check that it fits a model.

    Args:
        path: a `tokenizer.json`.
        vocabulary: number of embeddings of the model.

    Returns:
        The tokenizer, without truncation and padding.

    Raises:
        VerificationFailed: the file is no tokenizer, or it fails on a text.
        VersionMismatch: the tokenizer has more entries than the model, or no token that ends a document.
    """
    tokenizer = load_tokenizer(path)
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    if max(ids, default=0) >= vocabulary:
        raise VersionMismatch(f"{path} has more entries than its model; use the tokenizer that the model came with.")
    end_of_document(tokenizer)
    try:
        text_ids(tokenizer, ["a \U0010ffff"])
    except Exception as error:  # tokenizers raises no class of its own
        raise VerificationFailed(f"{path} fails on characters that it does not know; add an unknown token.") from error
    return tokenizer
