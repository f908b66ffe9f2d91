"""Embed texts with a sentence-transformers model on this machine, given by folder or by its downloaded name.

Invariants
- Nothing is fetched, no code of the model runs, and only safetensors weights are read, never a pickle.
- Each call takes one window of one text, on the CPU. So a vector depends on its text only, never on batch or padding.
- A text longer than the model's window is read to its end.
- Importing this module loads neither torch nor sentence-transformers. Creating an embedder loads both.

    vectors_ND = SentenceEmbedder("sentence-transformers/all-MiniLM-L6-v2").embed(["a river in France"])
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmem.errors import UsageError
from fedmem.installed import package
from fedmem.routing.windows import joined
from fedmem.storage.canonical import canonical_json

_INSTALL = "pip install sentence-transformers"
_WINDOW = 512  # tokens of a window if the model names no limit
_READ = {".json", ".txt", ".model", ".safetensors"}  # suffixes of the files that a vector can depend on


class SentenceEmbedder:
    """The embedder of a sentence-transformers model, with all modules that the model has.

    Args:
        model: the model's folder, or the name under which it was downloaded.

    Raises:
        UsageError: the package or the model is missing, or the model has no safetensors weights.
    """

    def __init__(self, model: str) -> None:
        library = package("sentence_transformers", _INSTALL)
        self._torch = package("torch", _INSTALL)
        package("transformers.utils.logging", _INSTALL).disable_progress_bar()
        self.name, self._folder = f"sentence-transformers:{Path(model).name}", _folder(model)
        try:
            self._model = library.SentenceTransformer(
                str(self._folder), device="cpu", local_files_only=True, model_kwargs={"use_safetensors": True}
            ).float()
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{model} is not a sentence-transformers model with safetensors weights. Choose another."
            ) from error

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return vectors [N, dim] of `texts`; the module's invariants hold."""
        out_ND = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            windows, tokens = self._windows(text)
            if any(tokens):
                out_ND[row] = joined(np.stack([self._vector(window) for window in windows]), tokens)
        return out_ND

    @cached_property
    def dim(self) -> int:
        """The number of dimensions of a vector."""
        return len(self._vector(self._windows("a")[0][0]))

    @cached_property
    def digest(self) -> str:
        """The SHA-256 over names and contents of the files that a vector can depend on, in hex."""
        files = sorted(path for path in self._folder.rglob("*") if path.suffix in _READ and path.is_file())
        names = {str(path.relative_to(self._folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        return hashlib.sha256(canonical_json(names)).hexdigest()

    def _windows(self, text: str) -> tuple[list[dict[str, list[int]]], list[int]]:
        """Return the model inputs of each window, and the number of text tokens in each."""
        encoded = self._model.tokenizer(
            text,
            truncation=True,
            max_length=self._model.max_seq_length or _WINDOW,
            return_overflowing_tokens=True,
            return_special_tokens_mask=True,
        )
        tokens = [len(mask) - sum(mask) for mask in encoded["special_tokens_mask"]]
        inputs = {name: encoded[name] for name in self._model.tokenizer.model_input_names if name in encoded}
        return [{name: rows[window] for name, rows in inputs.items()} for window in range(len(tokens))], tokens

    def _vector(self, window: dict[str, list[int]]) -> NDArray[np.float32]:
        with self._torch.inference_mode():
            features: Any = {name: self._torch.tensor([row]) for name, row in window.items()}
            vector_D: NDArray[np.float32] = self._model(features)["sentence_embedding"][0].float().numpy()
        return vector_D


def _folder(model: str) -> Path:
    """Return the folder of a model: `model` itself, or the downloaded copy of that name."""
    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(package("huggingface_hub", _INSTALL).snapshot_download(model, local_files_only=True))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"The model {model} is not on this machine. Give its folder, or fetch it with: hf download {model}"
        ) from error
