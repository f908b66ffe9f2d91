"""Figures for TensorBoard, with a stand-in for its package."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedmem.errors import UsageError
from fedmem.training.tensorboard import Scalars


def test_without_the_package_the_error_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UsageError, match="pip install tensorboard"):
        Scalars(tmp_path)


def test_each_figure_is_written_with_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            calls.append((folder,))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append((name, value, step))

        def close(self) -> None:
            calls.append(())

    monkeypatch.setitem(sys.modules, "tensorboard", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    scalars = Scalars(tmp_path)
    scalars.add("anchor/train", 3, 0.5)
    scalars.close()
    assert calls == [(str(tmp_path),), ("anchor/train", 0.5, 3), ()]
