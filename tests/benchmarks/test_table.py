"""README's table is what the kept results give."""

import json

import pytest

from benchmarks import table


def test_readme_holds_the_table_of_the_kept_results():
    text = table.README.read_text(encoding="utf-8")
    assert table.filled(text, table.table()) == text


def test_a_row_shows_figure_interval_machine_and_commit(tmp_path):
    kept = {
        "ratio": {"memory_over_plain": 1.1234},
        "interval": {"ratio.memory_over_plain": [1.1, 1.2]},
        "machine": {"cpu": "a processor", "commit": "abc"},
    }
    (tmp_path / "step.json").write_text(json.dumps(kept))
    assert table.table(tmp_path).splitlines()[-1].endswith("| ≤ 1.25 | 1.12 (1.1 to 1.2) | a processor, abc |")


def test_missing_marks_are_an_error():
    with pytest.raises(ValueError, match="unpack"):
        table.filled("no marks", "table")
