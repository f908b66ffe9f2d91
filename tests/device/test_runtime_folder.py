"""The runtime folder: where it lies, who may enter it, and what is in it."""

import os
import stat
from pathlib import Path

import pytest

from fedmem.device import runtime_folder
from fedmem.device.runtime_folder import place
from fedmem.errors import Busy, Refused
from fedmem.federation.rounds import RoundSettings
from fedmem.federation.terms import Agreement, LocalSettings
from tests.device.served import PLAN, SHAPES, TERMS

AGREEMENT = Agreement("ab" * 32, ("anchor",), PLAN, RoundSettings(), LocalSettings(48))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    home = tmp_path / ("a long name of a home" * 8)
    monkeypatch.setenv("FEDMEM_HOME", str(home))
    return home


def test_the_runtime_folder_is_for_this_user_only_and_tells_the_terms(home: Path, tmp_path: Path) -> None:
    (tmp_path / "r1").mkdir()
    with runtime_folder.runtime_folder(home / "vaults" / "ana", AGREEMENT, SHAPES, tmp_path / "r1") as runtime:
        assert runtime.folder.parent == home / "run"
        assert "ana" not in runtime.folder.name
        assert stat.S_IMODE(runtime.folder.stat().st_mode) == 0o700
        modes = {f.name: stat.S_IMODE(f.lstat().st_mode) for f in runtime.folder.iterdir() if not f.is_symlink()}
        assert modes == {"token": 0o600, "terms.json": 0o600, "lock": 0o600}
        assert len(runtime.token()) == 32
        assert runtime.terms().digest() == TERMS.digest()
        assert (runtime.agreement(), runtime.release()) == (AGREEMENT, tmp_path / "r1")
        first = runtime.token()
        with pytest.raises(Busy), runtime_folder.runtime_folder(home / "vaults" / "ana", AGREEMENT, SHAPES, tmp_path):
            pass
    assert not (runtime.folder / "token").exists()
    with runtime_folder.runtime_folder(home / "vaults" / "ana", AGREEMENT, SHAPES, tmp_path / "r1") as again:
        assert again.token() != first
        os.chmod(again.folder / "token", 0o640)
        with pytest.raises(Refused):
            again.token()


def test_a_runtime_folder_that_others_may_enter_is_refused(home: Path, tmp_path: Path) -> None:
    place(home / "v").mkdir(parents=True, mode=0o755)
    os.chmod(place(home / "v"), 0o755)
    with pytest.raises(Refused), runtime_folder.runtime_folder(home / "v", AGREEMENT, SHAPES, tmp_path):
        pass


def test_the_runtime_folder_lies_where_the_system_says(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "x"))
    assert place(home / "v").parent == tmp_path / "x" / "fedmem"
    assert place(home / "v") != place(home / "w")
