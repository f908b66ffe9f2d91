"""The scenario chats in small, on invented conversations: people as devices, fresh noise, nothing of them on disk."""

import json
from pathlib import Path

import pytest

from fedmem import paths
from fedmem.sim.report import render_page
from fedmem.sim.run import run_scenario
from fedmem.sim.sources import chats

MINI = Path(__file__).with_name("mini.toml")
TOPICS = ("trains", "bread", "rain", "bicycles", "chess", "bridges", "birds", "tea")
MARK = "zebrafinch4711"


def said(person, n):
    return f"{MARK} person {person} wrote this line number {n} about {TOPICS[(person + n) % 8]}, and likes it a lot."


@pytest.fixture(scope="module")
def scenario_file(tmp_path_factory):
    """A scenario file, and twelve invented people behind the corpus package's file."""
    folder, text = tmp_path_factory.mktemp("chats"), MINI.read_text(encoding="utf-8")
    text = text[: text.index("[[private]]")] + text[text.index("[anchor]") :]
    for old, new in (
        ("[public]\ndevices = 3", '[public]\nsource = "chats"\ndevices = 8'),
        ("heldout_share = 0.1", "heldout_share = 0.2"),
        ('"anchor", "level-1", "generic"', '"level-1"'),
        ("releases = 2", "releases = 1"),
        ('unsafe_no_dp = true\nunsafe_reason = "a test"', "noise_multiplier = 1.5\nepsilon_max = 10.0"),
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "people.toml").write_text(text, encoding="utf-8")
    talks = {}
    for person in range(0, 12, 2):
        for n in range(4):
            texts = [(f"p{person + who}", said(person + who, n), f"2018-01-01T00:0{who}") for who in (0, 1)]
            messages = [[{"sender": s, "text": t, "timestamp": at}] for s, t, at in texts]
            talks[f"{person}-{n}"] = {"start": f"2018-01-0{n + 1}", "messages": messages}
    talks["0-0"]["messages"].append(
        [{"sender": "p0", "text": f"{MARK} my doctor says that my diabetes needs insulin", "timestamp": "2018-01-02"}]
    )
    (folder / "dataset.json").write_text(json.dumps(talks), encoding="utf-8")
    return folder / "people.toml"


@pytest.fixture(scope="module")
def done(home, scenario_file):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chats, "package_file", lambda *_: scenario_file.with_name("dataset.json"))
        return run_scenario(
            str(scenario_file), corpus=None, seed=None, fresh=False, name="people", progress=lambda *_: None
        )


def test_people_take_part_under_noise_and_the_report_says_whose_text_it_was(done):
    assert done["corpus"] == "chats"
    assert 0 < done["epsilon"]["device"] <= 10
    assert done["loss"]["rounds"]["change"] != 0
    assert [row["counted"] for row in done["bytes"]["rounds"]] == [8, 8]
    assert any("Chit-Chat" in line for line in done["attribution"])
    assert "Chit-Chat" in render_page(done)


def test_no_word_of_theirs_and_no_noise_key_stays_on_disk(done):
    folder = paths.runs_dir() / "people"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if MARK.encode() in path.read_bytes()]
    assert not any((paths.slots_dir() / "runs").iterdir())
    assert done["residue"] == {"before": 0, "after": None}
    assert done["placement"]["private"] is None
