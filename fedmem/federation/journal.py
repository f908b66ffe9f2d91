"""What a coordinator has done, on disk: a journal, a ledger and one checkpoint a round (I6, I7, I9).

Invariants
- Append only, one JSON line an entry, each chained to the one before by SHA-256, each fsynced before the call returns;
  only an open entry, which promises nothing, waits for the next one's fsync.
- A line cut short by a crash was never acknowledged and is dropped; a changed line is `VerificationFailed`.
- A round's spend is in the ledger before `Durable` exists, and is there once however often the round is run again.
- A round is done when its close or abort entry is written; a closed one's checkpoint, parameters and server state, is
  whole by then. So a coordinator killed at any point resumes after the last such round and ends with the same bytes.
- What a round costs here does not grow with the rounds before it.

>>> import tempfile, pathlib
>>> journal = Journal(pathlib.Path(tempfile.mkdtemp()))
>>> journal.spent({"round": 1, "plan": {}}).number
1
>>> [event["round"] for event in journal.ledger.entries()]
[1]
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import load, save

from fedmem.canonical import canonical_json, digest
from fedmem.errors import NothingMatched, Refused, StorageError, VerificationFailed
from fedmem.federation.coordinator import Durable
from fedmem.federation.wire import Params

_FIRST = "0" * 64
# Beside the parameters in a checkpoint; no parameter has such a name.
_STATE = "server-state/"


class AppendLog:
    """An append-only file of chained entries. Raises VerificationFailed when opened over a changed one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: list[dict[str, Any]] = []
        self._known: set[str] = set()
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
        self._enter(row["body"], row["digest"], len(line))

    def _enter(self, body: dict[str, Any], head: str, size: int) -> None:
        self._entries.append(body)
        self._known.add(digest(body))
        self._head, self._size = head, self._size + size

    @property
    def head(self) -> str:
        """Digest of the last entry: it commits to every entry before it."""
        return self._head

    def entries(self) -> list[dict[str, Any]]:
        """The bodies, oldest first."""
        return list(self._entries)

    def holds(self, body: dict[str, Any]) -> bool:
        """Whether an entry with exactly this body is there."""
        return digest(body) in self._known

    def append(self, body: dict[str, Any], *, durable: bool = True) -> None:
        """Add one entry; on disk when this returns, or with the next one. After a StorageError nothing was added."""
        head = digest([self._head, body])
        line = canonical_json({"previous": self._head, "body": body, "digest": head}) + b"\n"
        try:
            _write_at(self.path, self._size, line, durable)
        except OSError as error:
            raise StorageError(f"Could not write {self.path.name}: {error.strerror}. Free space and resume.") from error
        # Through JSON, so that a body reads alike before and after a restart.
        self._enter(json.loads(line)["body"], head, len(line))


def _write_at(path: Path, offset: int, data: bytes, durable: bool) -> None:
    """Cut the file at `offset` (a torn line may follow) and append `data`; fsync it, and the folder of a new file."""
    new = not path.exists()
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.ftruncate(handle, offset)
        os.lseek(handle, offset, os.SEEK_SET)
        if os.write(handle, data) != len(data):
            raise OSError(28, "no space for the whole entry")
        if durable:
            os.fsync(handle)
    finally:
        os.close(handle)
    # An empty file may be one whose folder was never synced.
    if new or offset == 0:
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
    """One round on the wire: bytes of all payloads, order-free digest of all messages, replies counted, its end."""

    round: int
    down: int
    up: int
    wire: str
    counted: int
    aborted: bool = False


@dataclass(frozen=True)
class Left:
    """Where a federation was left: rounds over, and parameters and server state of the last closed one, if any."""

    done: int
    params: Params | None
    state: Params


class Journal:
    """`root/journal.jsonl`, `root/ledger.jsonl` (or the ledger given) and `root/checkpoints/`."""

    def __init__(self, root: Path, ledger: AppendLog | None = None) -> None:
        self.root = root
        self.log = AppendLog(root / "journal.jsonl")
        self.ledger = ledger or AppendLog(root / "ledger.jsonl")
        (root / "checkpoints").mkdir(exist_ok=True)
        self._ends: dict[int, dict[str, Any]] = {}
        for body in self.log.entries():
            self._index(body)
        self._spends = {_round_of(body): body for body in self.ledger.entries()}

    def _index(self, body: dict[str, Any]) -> None:
        if body["kind"] in ("close", "abort"):
            self._ends[body["round"]] = body

    def _append(self, body: dict[str, Any]) -> None:
        self.log.append(body)
        self._index(body)

    @property
    def done(self) -> int:
        """Rounds that are over, closed or aborted."""
        return max(self._ends, default=0)

    def opened(self, number: int) -> None:
        """Round `number` is about to be sent."""
        self.log.append({"kind": "open", "round": number}, durable=False)

    def spent(self, event: dict[str, Any]) -> Durable:
        """Make a round's privacy event durable, once, and say so.

        Raises Refused for a round that is over, and for one whose event stands in the ledger with other terms.
        """
        if self.done >= event["round"]:
            raise Refused("This round is over; it cannot be spent again. Resume from the journal.")
        body = {"kind": "device-round", **event}
        if not self.ledger.holds(body):
            if _round_of(body) in self._spends:
                raise Refused("This round was spent under other terms. Resume with the plan that it was begun with.")
            self.ledger.append(body)
            self._spends[_round_of(body)] = body
        return Durable(int(event["round"]))

    def closed(self, params: Params, traffic: Traffic, state: Params | None = None) -> None:
        """Checkpoint of parameters and server state, then the entry that makes the round count."""
        data = save(params | {f"{_STATE}{name}": value for name, value in (state or {}).items()})
        _write_whole(self._checkpoint(traffic.round), data)
        self._append({"kind": "close", "params": digest(data), **asdict(traffic)})

    def aborted(self, traffic: Traffic) -> None:
        """The round is over without a result."""
        self._append({"kind": "abort", **asdict(traffic)})

    def traffic(self) -> list[Traffic]:
        """Every round that is over, oldest first."""
        names = Traffic.__dataclass_fields__
        return [Traffic(**{name: body[name] for name in names if name in body}) for body in self._ends.values()]

    def wire_digest(self) -> str:
        """One digest over the messages of all rounds that are over; equal with and without a crash in between."""
        return digest([traffic.wire for traffic in self.traffic()])

    def resume(self) -> Left | None:
        """Where to go on; None before the first round is over. Raises VerificationFailed."""
        if not self._ends:
            return None
        closed = self._last_closed(self.done)
        return Left(self.done, *(self._read(closed) if closed else (None, {})))

    def params_at(self, number: int) -> Params:
        """Parameters after round `number`; an aborted one left those before it.

        Raises NothingMatched for a round that is not over or has no closed one before it, and VerificationFailed.
        """
        entry = self._last_closed(number) if number in self._ends else None
        if entry is None:
            raise NothingMatched(f"Round {number} is not closed. Run the federation on to it first.")
        return self._read(entry)[0]

    def _last_closed(self, number: int) -> dict[str, Any] | None:
        closed = (self._ends[n] for n in range(number, 0, -1) if n in self._ends and self._ends[n]["kind"] == "close")
        return next(closed, None)

    def _read(self, entry: dict[str, Any]) -> tuple[Params, Params]:
        data = self._checkpoint(entry["round"]).read_bytes()
        if digest(data) != entry["params"]:
            raise VerificationFailed(f"The checkpoint of round {entry['round']} was changed. Restore it from a backup.")
        arrays = load(data)
        params = {name: value for name, value in arrays.items() if not name.startswith(_STATE)}
        return params, {name.removeprefix(_STATE): arrays[name] for name in arrays.keys() - params.keys()}

    def _checkpoint(self, number: int) -> Path:
        return self.root / "checkpoints" / f"round-{number:06d}.safetensors"


def _round_of(body: dict[str, Any]) -> tuple[str, int]:
    """The one thing that is spent once: a round of a named federation."""
    return str(body.get("plan", {}).get("run", "")), int(body.get("round", 0))
