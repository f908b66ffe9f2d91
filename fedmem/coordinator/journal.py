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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import load, save

from fedmem.errors import NothingMatched, Refused, VerificationFailed
from fedmem.federation.rounds import Durable
from fedmem.federation.wire import Params
from fedmem.storage.canonical import canonical_json, digest
from fedmem.storage.files import Files
from fedmem.storage.hash_chained_log import JSON, HashChainedLog

# Beside the parameters in a checkpoint; no parameter has such a name.
_STATE = "server-state/"


class AppendLog:
    """The entries of a hash-chained log of JSON objects, kept in memory by the one process that appends.

    Raises VerificationFailed where an entry was changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._log = HashChainedLog(Files(), path, JSON)
        self._entries: list[dict[str, Any]] = [json.loads(entry.content) for entry in self._log.read()]
        self._digests = {digest(body) for body in self._entries}

    @property
    def head(self) -> str:
        """Digest of the last entry: it commits to every entry before it; "" where there is none."""
        return self._log.head

    def entries(self) -> list[dict[str, Any]]:
        """Return the bodies, oldest first."""
        return list(self._entries)

    def holds(self, body: dict[str, Any]) -> bool:
        """Return True if an entry with exactly this body is there."""
        return digest(body) in self._digests

    def append(self, body: dict[str, Any], *, durable: bool = True) -> None:
        """Add one entry; on disk when this returns, or with the next one. After a StorageError nothing was added."""
        content = canonical_json(body)
        self._log.append(content, durable=durable)
        # Through JSON, so that a body reads alike before and after a restart.
        self._entries.append(json.loads(content))
        self._digests.add(digest(body))


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
class ResumePoint:
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
        Files().replace(self._checkpoint(traffic.round), data)
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

    def resume(self) -> ResumePoint | None:
        """Where to go on; None before the first round is over. Raises VerificationFailed."""
        if not self._ends:
            return None
        closed = self._last_closed(self.done)
        return ResumePoint(self.done, *(self._read(closed) if closed else (None, {})))

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
