"""What a coordinator has done, on disk: a journal, a ledger and one checkpoint a round (I6, I7, I9).

Invariants
- Append only, one JSON line an entry, each chained to the one before by SHA-256, each fsynced before the call returns.
- A line cut short by a crash was never acknowledged and is dropped; a changed line is `VerificationFailed`.
- A round's spend is in the ledger before `Durable` exists, and is there once however often the round is run again.
- A round is done when its close entry is written; its checkpoint is whole by then. So a coordinator killed at any point
  resumes at the last closed round and ends with the same bytes.

>>> import tempfile, pathlib
>>> journal = Journal(pathlib.Path(tempfile.mkdtemp()))
>>> journal.spent({"round": 1, "plan": {}}).number
1
>>> [event["round"] for event in journal.ledger.entries()]
[1]
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import load, save

from fedmem.canonical import canonical_json, digest
from fedmem.errors import NothingMatched, Refused, StorageError, VerificationFailed
from fedmem.federation.coordinator import Durable
from fedmem.federation.wire import Params

_FIRST = "0" * 64


class AppendLog:
    """An append-only file of chained entries. Raises VerificationFailed when opened over a changed one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: list[dict[str, Any]] = []
        self._head, self._size = _FIRST, 0
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break
                self._load(line)

    def _load(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            sound = row["previous"] == self._head and row["digest"] == digest([row["previous"], row["body"]])
        except (ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            raise VerificationFailed(
                f"Entry {len(self._entries) + 1} of {self.path.name} was changed. Restore the file from a backup."
            )
        self._entries.append(row["body"])
        self._head, self._size = row["digest"], self._size + len(line)

    @property
    def head(self) -> str:
        """Digest of the last entry: it commits to every entry before it."""
        return self._head

    def entries(self) -> list[dict[str, Any]]:
        """The bodies, oldest first."""
        return list(self._entries)

    def append(self, body: dict[str, Any]) -> None:
        """Add one entry; on disk when this returns. Raises StorageError, and then nothing was added."""
        head = digest([self._head, body])
        line = canonical_json({"previous": self._head, "body": body, "digest": head}) + b"\n"
        try:
            _write_at(self.path, self._size, line)
        except OSError as error:
            raise StorageError(f"Could not write {self.path.name}: {error.strerror}. Free space and resume.") from error
        # Through JSON, so that a body reads alike before and after a restart.
        self._entries.append(json.loads(line)["body"])
        self._head, self._size = head, self._size + len(line)


def _write_at(path: Path, offset: int, data: bytes) -> None:
    """Cut the file at `offset` (a torn line may follow it), append `data`, fsync file and folder."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.ftruncate(handle, offset)
        os.lseek(handle, offset, os.SEEK_SET)
        if os.write(handle, data) != len(data):
            raise OSError(28, "no space for the whole entry")
        os.fsync(handle)
    finally:
        os.close(handle)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_whole(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"Could not write {path.name}: {error.strerror}. Free space and resume.") from error


@dataclass(frozen=True)
class Traffic:
    """One closed round on the wire: bytes of all payloads, order-free digest of all messages, replies counted."""

    round: int
    down: int
    up: int
    wire: str
    counted: int


class Journal:
    """`root/journal.jsonl`, `root/ledger.jsonl` (or the ledger given) and `root/checkpoints/`."""

    def __init__(self, root: Path, ledger: AppendLog | None = None) -> None:
        self.root = root
        self.log = AppendLog(root / "journal.jsonl")
        self.ledger = ledger or AppendLog(root / "ledger.jsonl")
        (root / "checkpoints").mkdir(exist_ok=True)

    def _of_kind(self, kind: str) -> Iterator[dict[str, Any]]:
        return (body for body in self.log.entries() if body["kind"] == kind)

    def opened(self, number: int) -> None:
        """Round `number` is about to be sent."""
        self.log.append({"kind": "open", "round": number})

    def spent(self, event: dict[str, Any]) -> Durable:
        """Make a round's privacy event durable, once, and say so. Raises Refused for a round that is closed."""
        if any(traffic.round >= event["round"] for traffic in self.traffic()):
            raise Refused("This round is closed; it cannot be spent again. Resume from the journal.")
        body = {"kind": "device-round", **event}
        if canonical_json(body) not in map(canonical_json, self.ledger.entries()):
            self.ledger.append(body)
        return Durable(int(event["round"]))

    def closed(self, params: Params, traffic: Traffic) -> None:
        """Checkpoint, then the entry that makes the round count."""
        _write_whole(self._checkpoint(traffic.round), save(params))
        self.log.append({"kind": "close", "params": digest(save(params)), **asdict(traffic)})

    def traffic(self) -> list[Traffic]:
        """Every closed round, oldest first."""
        names = Traffic.__dataclass_fields__
        return [Traffic(**{name: body[name] for name in names}) for body in self._of_kind("close")]

    def wire_digest(self) -> str:
        """One digest over the messages of all closed rounds; equal with and without a crash in between."""
        return digest([traffic.wire for traffic in self.traffic()])

    def resume(self) -> tuple[Params, int] | None:
        """Parameters and number of the last closed round; None before the first. Raises VerificationFailed."""
        last = next(reversed(list(self._of_kind("close"))), None)
        return (self.params_at(last["round"]), int(last["round"])) if last else None

    def params_at(self, number: int) -> Params:
        """Parameters after closed round `number`. Raises NothingMatched or VerificationFailed."""
        entry = next((body for body in self._of_kind("close") if body["round"] == number), None)
        if entry is None:
            raise NothingMatched(f"Round {number} is not closed. Run the federation on to it first.")
        data = self._checkpoint(number).read_bytes()
        if digest(data) != entry["params"]:
            raise VerificationFailed(f"The checkpoint of round {number} was changed. Restore it from a backup.")
        return load(data)

    def _checkpoint(self, number: int) -> Path:
        return self.root / "checkpoints" / f"round-{number:06d}.safetensors"
