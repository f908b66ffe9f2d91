"""Write and read the journals of the workers: the calls that each one asked for, and their outcomes.

Invariants
- A call stands in the journal before it is made, and its outcome before the worker goes on. Each line is one write to
  an append-only file, and is synced.
- A journal holds ids, digests, times and names of errors. It holds no text, topic or vector.
- A process has its own journal. A forked child begins another one.

    journal = Journal(folder)
    number = journal.ask("add", digests=[...])
    journal.end(number, "ok", ids=[...])
    calls = read_all(folder)
"""

import itertools
import json
import os
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OK, FAILED, UNKNOWN = "ok", "error", ""


@dataclass
class Call:
    """A call of a worker.

    Attributes:
        op: name of the call.
        asked: its facts, from before the call.
        begun: seconds of the monotonic clock, which all processes of a machine share.
        outcome: "ok", "error", or "" if the worker ended before it wrote one.
        result: facts of the outcome.
        ended: seconds of the monotonic clock; infinity if there is no outcome.
    """

    op: str
    asked: dict[str, Any]
    begun: float
    outcome: str = UNKNOWN
    result: dict[str, Any] = field(default_factory=dict)
    ended: float = float("inf")

    @property
    def seconds(self) -> float:
        """The duration of the call; 0 if it has no outcome."""
        return self.ended - self.begun if self.outcome else 0.0


class Journal:
    """The journal of one process; its threads share it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{uuid.uuid4().hex}.jsonl"
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._numbers = itertools.count()

    def ask(self, op: str, **facts: Any) -> int:
        """Write that a call is about to be made, and return its number."""
        number = next(self._numbers)
        self._write({"n": number, "op": op, "t": time.monotonic(), "facts": facts})
        return number

    def end(self, number: int, outcome: str, **facts: Any) -> None:
        """Write the outcome of a call."""
        self._write({"n": number, "outcome": outcome, "t": time.monotonic(), "facts": facts})

    def _write(self, line: dict[str, Any]) -> None:
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        if os.write(self._file, data) != len(data):
            raise OSError(f"the journal {self.path} took half a line")
        os.fsync(self._file)


def read_all(folder: Path) -> list[Call]:
    """Return the calls of all journals of a folder, in the order of their beginnings."""
    calls = [call for path in folder.glob("*.jsonl") for call in read(path)]
    return sorted(calls, key=lambda call: call.begun)


def read(path: Path) -> list[Call]:
    """Return the calls of one journal. A last line without its end was never written whole, and is left out."""
    calls: dict[int, Call] = {}
    *lines, _ = path.read_bytes().split(b"\n")
    for line in map(json.loads, lines):
        if "op" in line:
            calls[line["n"]] = Call(line["op"], line["facts"], line["t"])
        else:
            call = calls[line["n"]]
            call.outcome, call.result, call.ended = line["outcome"], line["facts"], line["t"]
    return list(calls.values())
