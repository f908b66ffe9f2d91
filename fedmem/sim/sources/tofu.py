"""Load question-answer pairs about invented authors in the form of TOFU: a JSONL file, plain or gzipped.

Invariants
- A line is an object {"author": int or str, "q": str, "a": str} and nothing else. A pair occurs once.
- A bad line is a UsageError with file and line number and no part of the line.
- The order is that of the file, equal in every process.
- A small file that unpacks to a huge one is refused before it fills the memory.

    facts = load(Path("tofu_qa.jsonl.gz"))
    question, answer = facts["0"][0]
"""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from fedmem.errors import UsageError

ATTRIBUTION = "Pairs in the form of TOFU (locuslab/tofu, MIT; arXiv 2401.06121); its authors are invented."
LONGEST = 1 << 28  # bytes, unpacked
_KEYS = {"author", "q", "a"}
_SHAPE = 'Each line must be a JSON object with "author", "q" and "a", all of them given, and no pair twice.'

Facts = dict[str, list[tuple[str, str]]]
"""Pairs of question and answer, by author."""


def load(path: Path) -> Facts:
    """Return all pairs of the file, by author.

    Args:
        path: a JSONL file, plain or gzipped.

    Raises:
        UsageError: the file cannot be read, holds no pair, is longer than 256 MiB unpacked, or has a bad line.
    """
    facts, pairs = Facts(), set[tuple[str, str]]()
    for number, line in enumerate(_content(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        entry = _pair(line)
        if entry is None or entry[1] in pairs:
            raise UsageError(f"The facts {path}, line {number}, are no question-answer pair. {_SHAPE}")
        author, pair = entry
        pairs.add(pair)
        facts.setdefault(author, []).append(pair)
    if not facts:
        raise UsageError(f"The facts {path} hold no question-answer pair. {_SHAPE}")
    return facts


def _content(path: Path) -> bytes:
    try:
        # Gzip is told by the first bytes, since a file that a browser unpacked keeps its name.
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            data = file.read(LONGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "it is not whole"
        raise UsageError(
            f"The facts {path} cannot be read: {reason}. Check the path, or fetch the file again."
        ) from None
    if len(data) > LONGEST:
        raise UsageError(f"The facts {path} are longer than {LONGEST >> 20} MiB. Give a smaller file.")
    return data


def _pair(line: bytes) -> tuple[str, tuple[str, str]] | None:
    """Return author and pair on one line, or None; no exception carries the line."""
    try:
        entry: Any = json.loads(line.decode("utf-8-sig"))
        if not isinstance(entry, dict) or entry.keys() != _KEYS or type(entry["author"]) not in (int, str):
            return None
        author, question, answer = str(entry["author"]).strip(), str.strip(entry["q"]), str.strip(entry["a"])
        f"{author}{question}{answer}".encode()  # a lone surrogate is no text
    except (ValueError, TypeError, RecursionError):
        return None
    return (author, (question, answer)) if author and question and answer else None
