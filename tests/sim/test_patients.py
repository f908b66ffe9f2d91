"""Invented patients give notes, and nothing is printed or written on the way."""

from pathlib import Path

import pytest

from fedmem.sim.sources import patients


def test_patients_give_notes_without_printing_or_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    notes = patients.generate(40, seed=7)
    assert len(notes) == len({note.text for note in notes}) == 40
    assert all(note.topic == "health" and 60 < len(note.text) <= 900 for note in notes)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
