"""An anchor's folder: a Hugging Face model with its tokenizer.json, from `fedmem anchor train` or from elsewhere.

Invariants
- No code of the folder runs; only safetensors weights are read, in float32, and nothing outside the folder.
- Model and tokenizer fit: no id of the tokenizer lies outside the model's embedding, and ids 0 and 1 are its padding
  and its end of document, which `fedmem.training.sequences` relies on.
- Written whole or not at all.
"""

import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from fedmem.anchor.load import load_model
from fedmem.anchor.tokenizer import end_of_document
from fedmem.errors import NothingMatched, VerificationFailed, VersionMismatch
from fedmem.memory.sites import shape_of
from fedmem.storage.files import Files, storage_errors


def save_anchor(folder: Path, model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Write `folder/anchor` and `folder/tokenizer.json`, durably."""
    writing, final = folder / ".writing", folder / "anchor"
    with storage_errors("write the anchor"):
        shutil.rmtree(writing, ignore_errors=True)
        model.save_pretrained(writing)
        for path in writing.iterdir():
            Files().replace(path, path.read_bytes())
        shutil.rmtree(final, ignore_errors=True)
        writing.rename(final)
    Files().replace(folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode())


def load_anchor(folder: Path) -> tuple[PreTrainedModel, Tokenizer]:
    """The model in `folder`, or in its `anchor`, and the tokenizer beside it.

    Raises NothingMatched where there is none, Refused for a configuration that names code to run, VerificationFailed
    for damaged weights, UsageError for an architecture that memory cannot be attached to, VersionMismatch for a
    tokenizer that is not the model's.
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
    """The tokenizer at `path` for a model with so many embeddings, cutting and padding switched off."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise VerificationFailed(f"{path} is no tokenizer; put the model's own tokenizer.json there.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    if max(ids, default=0) >= vocabulary:
        raise VersionMismatch(f"{path} has more entries than its model; use the tokenizer that the model came with.")
    end_of_document(tokenizer)
    return tokenizer
