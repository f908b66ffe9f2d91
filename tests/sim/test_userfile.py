"""The user's file is read whole, or refused without a word of it."""

import json
from pathlib import Path

import pytest

from fedmem.errors import UsageError
from fedmem.sim.sources import userfile
from fedmem.sim.sources.record import SourceRecord


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
