"""The static embedder against the slow obvious way, one text at a time."""

import io
import subprocess
import sys
from importlib import resources

import numpy as np
import pytest
from tokenizers import Tokenizer

from fedmem.routing.embedder import StaticEmbedder

TEXTS = [
    "Blood pressure of the patient.",
    "a",
    "",
    "Zürich ist schön — naïve café",
    "3.14159 " * 40,
    "\u200b",
    "river bank",
]


@pytest.fixture(scope="module")
def embedder() -> StaticEmbedder:
    return StaticEmbedder()


def slowly(text: str) -> np.ndarray:
    folder = resources.files("fedmem.routing") / "static_embed"
    arrays = np.load(io.BytesIO((folder / "minilm_static_128d_int8.npz").read_bytes()), allow_pickle=False)
    table = arrays["q"].astype("f4") * arrays["scale"]
    tokenizer = Tokenizer.from_str((folder / "tokenizer.json").read_text())
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    mean = table[ids].mean(axis=0) if ids else np.zeros(table.shape[1], dtype="f4")
    return mean / max(np.linalg.norm(mean), 1e-12)


def test_equals_the_slow_way(embedder: StaticEmbedder) -> None:
    np.testing.assert_allclose(embedder.embed(TEXTS), np.stack([slowly(text) for text in TEXTS]), atol=2e-6)


def test_vectors_are_unit_or_zero(embedder: StaticEmbedder) -> None:
    norms = np.linalg.norm(embedder.embed(TEXTS), axis=1)
    assert norms[2] == 0
    np.testing.assert_allclose(np.delete(norms, [2, 5]), 1, atol=1e-6)


def test_a_text_gets_the_same_bits_in_any_batch(embedder: StaticEmbedder) -> None:
    many = [f"{text} {number}" for number in range(100) for text in TEXTS]
    order = np.random.default_rng(0).permutation(len(many))
    together = embedder.embed(many)
    assert np.array_equal(embedder.embed([many[i] for i in order]), together[order])
    assert np.array_equal(np.concatenate([embedder.embed([text]) for text in many[:50]]), together[:50])


def test_the_end_of_a_long_text_counts(embedder: StaticEmbedder) -> None:
    start = "the river " * 400
    alone, with_end = embedder.embed([start, start + "my password is secret " * 50])
    assert float(alone @ with_end) < 0.99


def test_no_texts(embedder: StaticEmbedder) -> None:
    vectors = embedder.embed([])
    assert vectors.shape == (0, 128)
    assert vectors.dtype == np.float32


def test_nearer_meaning_is_nearer(embedder: StaticEmbedder) -> None:
    patient, doctor, galaxy = embedder.embed(["the patient is ill", "the doctor treats an illness", "a distant galaxy"])
    assert patient @ doctor > patient @ galaxy


def test_digest_names_the_weights(embedder: StaticEmbedder) -> None:
    assert embedder.digest == StaticEmbedder().digest
    assert len(bytes.fromhex(embedder.digest)) == 32


def test_use_on_a_device_loads_nothing_heavy() -> None:
    code = (
        "import sys, fedmem.routing.embedder, fedmem.routing.router, fedmem.policy.policy;"
        "print(sorted({'torch', 'transformers', 'flwr', 'ray', 'faiss', 'opacus'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
