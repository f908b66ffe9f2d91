"""Public texts never hold a record that declares a topic, nor one that is marked as held out."""

import json
from pathlib import Path

import pytest

from fedmem.errors import Refused, UsageError
from fedmem.sim.sources import wikipedia
from fedmem.sim.sources.texts import WIKIPEDIA, public_texts


def write(path: Path, *rows: dict[str, str]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_installed_texts_come_with_their_attribution(monkeypatch: pytest.MonkeyPatch) -> None:
    document = wikipedia.Document("Aare\nA river.", "geography", "Aare")
    monkeypatch.setattr(wikipedia, "load", lambda: [document])
    assert public_texts(WIKIPEDIA) == (["Aare\nA river."], wikipedia.ATTRIBUTION)


def test_held_out_records_are_left_out_and_the_order_stays(tmp_path: Path) -> None:
    rows = [{"text": "b"}, {"text": "c", "split": "heldout"}, {"text": "a", "split": "train"}]
    texts, attribution = public_texts(write(tmp_path / "a.jsonl", *rows))
    assert texts == ["b", "a"]
    assert "user" in attribution


def test_a_folder_is_read_by_the_names_of_its_files(tmp_path: Path) -> None:
    write(tmp_path / "2.jsonl", {"text": "two"})
    write(tmp_path / "1.jsonl", {"text": "one"})
    assert public_texts(str(tmp_path))[0] == ["one", "two"]


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_record_with_a_topic_is_refused_without_its_text(tmp_path: Path, split: str) -> None:
    private = {"text": "her diagnosis", "topic": "health", "split": split}
    with pytest.raises(Refused, match="declare a topic") as raised:
        public_texts(write(tmp_path / "a.jsonl", {"text": "public"}, private))
    assert "diagnosis" not in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the word wikipedia"):
        public_texts(str(tmp_path / "none.jsonl"))
