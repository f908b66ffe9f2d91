"""Shares of a gain, their groups and their picture; a tiny run through every part."""

import json

import pytest

from benchmarks.private_utility import __main__ as utility
from benchmarks.private_utility.cells import Arm, Bench
from benchmarks.private_utility.figures import figures, plot
from benchmarks.private_utility.text import Topic, clinical
from fedmem.errors import UsageError


def losses(records=(100, 400)):
    arms = {"without": 6.0, "best-0.01": 5.0, "best-0.003": 5.5, "eps8": 5.25, "eps2": 5.5}
    return {("t", n, seed, arm): loss for n in records for seed in range(3) for arm, loss in arms.items()}


def test_a_share_is_of_the_best_gain() -> None:
    data = figures(losses(), 400)
    assert data["share_of_gain"] == {"eps8": 0.75, "eps2": 0.5}
    assert data["interval"]["share_of_gain.eps8"] == pytest.approx([0.75, 0.75])
    assert data["by_topic"] == {"t": {"eps8": 0.75, "eps2": 0.5}}
    assert data["by_records"].keys() == {"t 100", "t 400"}


def test_it_is_drawn(tmp_path) -> None:
    plot(figures(losses(), 400), tmp_path / "p.svg")
    assert "records (t)" in (tmp_path / "p.svg").read_text("utf-8") or (tmp_path / "p.svg").stat().st_size > 1000


def test_a_file_without_notes_is_refused(tmp_path) -> None:
    import gzip

    with gzip.open(tmp_path / "n.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps({"note": "The patient is well and came back for a visit."}) + "\n")
    with pytest.raises(UsageError, match="1 notes"):
        clinical(tmp_path / "n.jsonl.gz", 0)


def test_a_run_of_each_arm(tmp_path, monkeypatch) -> None:
    words = [f"{a} lies in the {b} of the {c}." for a in ("Oslo", "Lima") for b in ("north", "west") for c in "abcde"]
    monkeypatch.setattr("benchmarks.private_utility.cells.public", lambda: (words, {}))
    small = utility.replace(utility.SMALL, steps=2, sampling_rate=1.0)  # an empty sample without noise changes nothing
    bench = Bench(tmp_path, 2)
    topic = Topic(words[:8], words[8:12])
    before = bench.without(topic)
    for arm in (Arm("p", 8.0, small), Arm("n", 0.0, small), Arm("a", 8.0, small, average=0.5)):
        assert bench.run(topic, arm) != before
    assert Bench(tmp_path, 2).without(topic) == before
