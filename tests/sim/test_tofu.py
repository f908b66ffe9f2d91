"""A file of question-answer pairs is read whole, or refused without a word of it."""

import gzip
import json

import pytest

from fedmem.errors import UsageError
from fedmem.sim.sources import tofu


def line(author, question, answer):
    return json.dumps({"author": author, "q": question, "a": answer}) + "\n"


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_of_pairs(tmp_path, packed):
    text = line(1, "Who?", "Mira.") + "\n" + line("one", "What?", " A book. ") + line(1, "When?", "Then.")
    path = tmp_path / "facts"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert tofu.load(path) == {"1": [("Who?", "Mira."), ("When?", "Then.")], "one": [("What?", "A book.")]}


BAD = [
    b"{",
    b"[]",
    b'{"author": 1, "q": "zebrafinch"}',
    b'{"author": 1, "q": "zebrafinch", "a": "b", "c": 1}',
    b'{"author": true, "q": "zebrafinch", "a": "b"}',
    b'{"author": 1, "q": 2, "a": "zebrafinch"}',
    b'{"author": 1, "q": " ", "a": "zebrafinch"}',
    b'{"author": 1, "q": "zebrafinch \\ud800", "a": "b"}',
    b'\xff{"author": 1, "q": "zebrafinch", "a": "b"}',
    b"[" * 100_000,
    line(1, "Who?", "Mira.").encode(),
]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_a_bad_line_is_named_and_not_quoted(tmp_path, bad):
    path = tmp_path / "facts.jsonl"
    path.write_bytes(line(1, "Who?", "Mira.").encode() + bad)
    with pytest.raises(UsageError, match="line 2") as caught:
        tofu.load(path)
    assert "zebrafinch" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(line(1, "Who?", "Mira.").encode() * 100)[:-9])
    broken = tmp_path / "broken.gz"
    broken.write_bytes(b"\x1f\x8b\x08\x00" + bytes(30))
    empty = tmp_path / "empty"
    empty.write_bytes(b"\n")
    for path in (cut, broken, empty, tmp_path / "none", tmp_path):
        with pytest.raises(UsageError):
            tofu.load(path)
    monkeypatch.setattr(tofu, "LONGEST", 100)
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(bytes(1_000)))
    with pytest.raises(UsageError, match="longer"):
        tofu.load(bomb)
