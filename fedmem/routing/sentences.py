"""Any sentence-transformers model that lies on this machine, by folder or by the name it was downloaded under.

Invariants
- Nothing is fetched, no code of the model runs, and only safetensors weights are read, never a pickle.
- One window of one text a call, on the CPU: a vector depends on its text only, never on the batch or on padding.
- A text longer than the model's window is read to its end.
- `import` of this module loads neither torch nor sentence-transformers; making an embedder does.

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
_WINDOW = 512  # tokens read at once where the model names no limit
_READ = {".json", ".txt", ".model", ".safetensors"}  # what a vector can depend on


class SentenceEmbedder:
    """The embedding that the model's own modules give. Raises UsageError where package or model is missing."""

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
        """Vectors [N, dim] of `texts`; see the module for what is guaranteed."""
        out_ND = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            windows, tokens = self._windows(text)
            if any(tokens):
                out_ND[row] = joined(np.stack([self._vector(window) for window in windows]), tokens)
        return out_ND

    @cached_property
    def dim(self) -> int:
        """Columns of a vector."""
        return len(self._vector(self._windows("a")[0][0]))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the files that a vector can depend on, by name."""
        files = sorted(path for path in self._folder.rglob("*") if path.suffix in _READ and path.is_file())
        names = {str(path.relative_to(self._folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        return hashlib.sha256(canonical_json(names)).hexdigest()

    def _windows(self, text: str) -> tuple[list[dict[str, list[int]]], list[int]]:
        """Model inputs of each window, and how many tokens of the text it holds."""
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
    """Where the model lies: `model` itself, or the downloaded copy of that name."""
    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(package("huggingface_hub", _INSTALL).snapshot_download(model, local_files_only=True))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"The model {model} is not on this machine. Give its folder, or fetch it with: hf download {model}"
        ) from error
