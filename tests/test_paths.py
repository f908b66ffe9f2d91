"""Folders of this machine: each follows its variable, and none is created by asking for it."""

from pathlib import Path

import pytest

from fedmem import paths


def test_every_folder_follows_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FEDMEM_RUNS", raising=False)
    folders = {paths.home(), paths.runs_dir(), paths.slots_dir(), paths.vaults_dir()}
    assert len(folders) == 4
    assert all(folder.is_relative_to(tmp_path / "home") for folder in folders)
    monkeypatch.setenv("FEDMEM_RUNS", str(tmp_path / "runs"))
    assert paths.runs_dir() == tmp_path / "runs"
    assert list(tmp_path.iterdir()) == []


def test_keys_lie_in_no_folder_of_vaults_or_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDMEM_HOME", raising=False)
    for folder in (paths.runs_dir(), paths.vaults_dir()):
        assert not paths.slots_dir().is_relative_to(folder)
        assert not folder.is_relative_to(paths.slots_dir())


def test_an_empty_variable_is_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMEM_HOME", "")
    assert paths.home().is_absolute()
