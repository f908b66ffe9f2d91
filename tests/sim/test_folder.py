"""A run's folder appears whole, its files are replaced whole, and a damaged one is named."""

import json
from pathlib import Path

import pytest

from fedmem.errors import StorageError, VerificationFailed
from fedmem.sim.folder import RunFolder, read_json, subject_of, write_json


def test_a_folder_is_created_whole_with_its_inputs(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "a")
    assert not folder.is_run()
    folder.create({"seed": 7})
    assert folder.is_run()
    assert (folder.inputs(), folder.facts(), folder.name) == ({"seed": 7}, {}, "a")
    assert all(path.is_dir() for path in (folder.state, folder.releases, folder.receipts, folder.root / "vaults"))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a"]


def test_a_folder_that_cannot_be_made_is_absent_and_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    folder = RunFolder(tmp_path / "runs" / "a")
    with pytest.raises(StorageError, match="create the run's folder"):
        folder.create({})
    assert not folder.root.exists()


def test_facts_of_phases_are_kept_beside_each_other_and_the_last_ones_count(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a")
    folder.create({})
    folder.finish_phase("prepare", {"seconds": 1})
    folder.finish_phase("pretrain", {"seconds": 2})
    folder.finish_phase("prepare", {"seconds": 3})
    assert folder.facts() == {"prepare": {"seconds": 3}, "pretrain": {"seconds": 2}}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"loss": float("-inf")}])
def test_a_number_that_json_cannot_hold_leaves_the_old_file(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == [1]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"a": secret}'])
def test_a_damaged_file_is_named_and_not_quoted(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "phases.json").write_bytes(content)
    with pytest.raises(VerificationFailed, match=r"phases\.json .* --fresh") as raised:
        read_json(tmp_path / "phases.json")
    assert "secret" not in str(raised.value)


def test_any_text_comes_back(tmp_path: Path) -> None:
    value = {"漢字 🌲": ["\0", "\u2028", None, True, 1.5]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value == json.loads((tmp_path / "a.json").read_text())


def test_each_device_has_a_vault_and_a_subject_of_its_own(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert len({folder.vault(device) for device in range(12)} | {subject_of(device) for device in range(12)}) == 24
    assert folder.vault(11).parent == tmp_path / "vaults"
