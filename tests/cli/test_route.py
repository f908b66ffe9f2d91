"""route explain: placement, rule and path, and never the text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmem.routing.embedder import StaticEmbedder
from fedmem.routing.tree import Tree

Call = Callable[..., tuple[Any, dict[str, Any]]]
WORDS = "quokka-8812 my doctor prescribed tablets for my blood pressure and the diagnosis came back"


def test_from_standard_input_and_from_a_file(fedmem: Call, tmp_path: Path) -> None:
    result, envelope = fedmem("route", "explain", "-", input=WORDS)
    assert (result.exit_code, envelope["schema"]) == (0, "fedmem.route.explain/1")
    data = envelope["data"]
    assert data["placement"] == "private"
    assert data["topic"] == "health"
    assert data["rule"]
    assert data["path"] is None
    (tmp_path / "text").write_text(WORDS)
    assert fedmem("route", "explain", str(tmp_path / "text"))[1] == envelope
    assert "quokka" not in result.output


def test_public_text_and_a_declared_topic(fedmem: Call) -> None:
    text = "The museum of the town opens at ten and shows old maps."
    assert fedmem("route", "explain", input=text)[1]["data"]["placement"] == "shared"
    declared = fedmem("route", "explain", "--topic", "health", input=text)[1]["data"]
    assert (declared["placement"], declared["topic"]) == ("private", "health")


def test_the_path_in_a_release(fedmem: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from fedmem.training import release

    rng = np.random.default_rng(0)
    tree = Tree(2, 2, tuple(rng.normal(size=(n, 128)).astype(np.float32) for n in (2, 4)))
    opened = SimpleNamespace(tree=tree, digest="d1", embedder=StaticEmbedder())
    monkeypatch.setattr(release.Release, "load", lambda _: opened)
    data = fedmem("route", "explain", "--release", "somewhere", input=WORDS)[1]["data"]
    assert data["release"] == "d1"
    assert len(data["path"]) == 2
    assert data["path"][1] // 2 == data["path"][0]


def test_bad_input(fedmem: Call, tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    assert fedmem("route", "explain", str(tmp_path / "latin"))[0].exit_code == 2
    assert fedmem("route", "explain", str(tmp_path / "none"))[0].exit_code == 2
    assert fedmem("route", "explain", "--policy", "none", input="x")[0].exit_code == 2
    assert fedmem("route", "explain", "--topic", "none", input="x")[0].exit_code == 2
    assert fedmem("route", "explain", "--release", str(tmp_path), input="x")[0].exit_code == 3
