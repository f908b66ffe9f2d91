"""The manifest of a bank: strict reading, names that stay inside the folder, and the sweep of leftover files."""

import json

import pytest

from fedmem.errors import NothingMatched, VerificationFailed, VersionMismatch
from fedmem.memory.bank import Bank, verify
from fedmem.memory.manifest import MANIFEST, TEMPORARY, BankManifest, sweep
from tests.memory.test_bank import SPEC, written

__all__ = ["written"]


def test_a_bank_of_another_format_is_refused(written):
    data = json.loads((written[0] / MANIFEST).read_bytes())
    (written[0] / MANIFEST).write_text(json.dumps(data | {"format": 99}))
    with pytest.raises(VersionMismatch, match="format"):
        Bank.open(written[0], SPEC)


@pytest.mark.parametrize(
    "change",
    [
        {"levels": []},
        {"levels": [[[3, "a" * 64]], [[8, "a" * 64]]]},
        {"levels": [[[3, "../" * 20]], [[9, "a" * 64]]]},
        {"generic": "A" * 64},
        {"generic": None},
        {"memory": {}},
        {"memory": 3},
    ],
)
def test_a_changed_manifest_is_refused(written, change):
    data = json.loads((written[0] / MANIFEST).read_bytes())
    (written[0] / MANIFEST).write_text(json.dumps(data | change))
    with pytest.raises(VerificationFailed, match="changed"):
        Bank.open(written[0], SPEC)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"{}"])
def test_a_manifest_that_is_none_is_refused(written, content):
    (written[0] / MANIFEST).write_bytes(content)
    with pytest.raises(VerificationFailed):
        verify(written[0])


def test_a_manifest_comes_back_as_it_was_written(written, tmp_path):
    manifest = BankManifest.read(written[0])
    (tmp_path / "copy").mkdir()
    manifest.write(tmp_path / "copy")
    assert BankManifest.read(tmp_path / "copy") == manifest
    assert {name for name, _ in manifest.files()} == {p.name for p in written[0].glob("*.safetensors")}


def test_a_sweep_keeps_the_files_of_the_bank_and_those_of_others(written):
    folder, kept = written[0], {path.name for path in written[0].iterdir()}
    leftovers = [f"level-2-{'a' * 16}.safetensors", f"generic-{'0' * 16}.safetensors", TEMPORARY]
    for name in [*leftovers, "notes.txt"]:
        (folder / name).write_bytes(b"x")
    sweep(folder)
    assert {path.name for path in folder.iterdir()} == kept | {"notes.txt"}


def test_a_sweep_under_a_manifest_that_cannot_be_read_removes_nothing(written):
    (written[0] / MANIFEST).write_bytes(b"{")
    before = {path.name for path in written[0].iterdir()}
    sweep(written[0])
    assert {path.name for path in written[0].iterdir()} == before


def test_no_manifest_is_no_bank(tmp_path):
    with pytest.raises(NothingMatched, match="no bank"):
        BankManifest.read(tmp_path)
