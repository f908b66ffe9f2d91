"""Load the user's own text: a JSONL file or a folder of them, one record a line.

Invariants
- A line is an object {"text": str} with, at most, "device": str, "topic": str and "split": "train" | "heldout".
- A bad line is a UsageError with file and line number. Neither it nor its causes hold a part of the line, since text
  may be private.
- The order is by file name, then line: equal in every process.
- The text is real. Training on it takes a random noise key and keeps it out of the run's digest (docs/design.md, §7).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedmem.errors import UsageError
from fedmem.sim.sources.record import SourceRecord

ATTRIBUTION = "The user's own text; what is private in it stays outside the digest."
_OPTIONAL = ("device", "topic")
_KEYS = {"text", "split", *_OPTIONAL}
_SHAPE = (
    'Each line must be a JSON object with "text", and at most "device", "topic" and "split" ("train" or "heldout").'
)


def load(path: Path) -> list[SourceRecord]:
    """Return all records of the file, or of the folder's *.jsonl files.

    Args:
        path: a JSONL file, or a folder of them.

    Raises:
        UsageError: a file cannot be read, a line is bad, or there is no record.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix == ".jsonl" and file.is_file())
    else:
        files = [path]
    records = [record for file in files for record in _records(file)]
    if not records:
        raise UsageError(f"The corpus {path} holds no record. Give a .jsonl file, or a folder of them. {_SHAPE}")
    return records


def _records(file: Path) -> Iterator[SourceRecord]:
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"The corpus file {file} cannot be read: {error.strerror}. Check its path.") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if (record := _record(line)) is None:
            raise UsageError(f"The corpus file {file}, line {number}, is not a record. {_SHAPE}")
        yield record


def _record(line: bytes) -> SourceRecord | None:
    """Return the record on one line, or None; no exception carries the line."""
    try:
        entry: Any = json.loads(line.decode("utf-8-sig"))
        if not isinstance(entry, dict) or not entry.keys() <= _KEYS:
            return None
        text, split = str.strip(entry["text"]), entry.get("split", "train")
        text.encode()  # a lone surrogate is no text
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    names = [entry[key] for key in _OPTIONAL if key in entry]
    if (
        split not in ("train", "heldout")
        or not text.strip()
        or not all(isinstance(n, str) and n.strip() for n in names)
    ):
        return None
    return SourceRecord(text, entry.get("topic"), entry.get("device"), split)
