"""Keep the rounds of a coordinator on disk: a journal, a ledger, and one checkpoint for each round (I6, I7, I9).

Invariants
- Journal and ledger are append-only. An entry is one JSON line, chained to the line before it by SHA-256.
- Each entry is fsynced before the call returns. One exception: an open entry promises nothing, so it becomes durable
  with the next entry.
- A line that a crash cut short was never acknowledged; it is dropped. A changed line gives `VerificationFailed`.
- The spend of a round is in the ledger before its `Durable` exists. It is there once, even if the round is run again.
- A round is over when its close or abort entry is written. The checkpoint of a closed round (parameters and server
  state) is complete before that. So a coordinator that is killed at any point resumes after the last such round, and
  ends with the same bytes.
- The cost of a round here does not grow with the number of earlier rounds.

>>> import tempfile, pathlib
>>> journal = Journal(pathlib.Path(tempfile.mkdtemp()))
>>> journal.record_spend({"round": 1, "plan": {}}).number
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

# The server state lies beside the parameters in a checkpoint; no parameter has such a name.
_STATE_PREFIX = "server-state/"


class AppendLog:
    """A hash-chained log of JSON objects. The one process that appends keeps all entries in memory.

    Args:
        path: the file of the log; its folder is made if it is missing.

    Raises:
        VerificationFailed: an entry was changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._log = HashChainedLog(Files(), path, JSON)
        self._entries: list[dict[str, Any]] = [json.loads(entry.content) for entry in self._log.read()]
        self._digests = {digest(body) for body in self._entries}

    @property
    def head(self) -> str:
        """The digest of the last entry, which commits to all earlier entries; "" for an empty log."""
        return self._log.head

    def entries(self) -> list[dict[str, Any]]:
        """Return the bodies of all entries, oldest first."""
        return list(self._entries)

    def contains(self, body: dict[str, Any]) -> bool:
        """Return True if the log has an entry with exactly this body.

        Args:
            body: a JSON object.
        """
        return digest(body) in self._digests

    def append(self, body: dict[str, Any], *, durable: bool = True) -> None:
        """Add one entry.

        Args:
            body: a JSON object.
            durable: if True, the entry is on disk when this returns; else it is on disk with the next durable entry.

        Raises:
            StorageError: the disk refuses; the log is as it was before.
        """
        content = canonical_json(body)
        self._log.append(content, durable=durable)
        # Through JSON, so that a body is equal before and after a restart.
        self._entries.append(json.loads(content))
        self._digests.add(digest(body))


@dataclass(frozen=True)
class Traffic:
    """The messages of one round, in figures.

    Attributes:
        round: number of the round, from 1.
        down: bytes of all payloads to devices.
        up: bytes of all payloads from devices.
        wire: digest of all messages; their order has no effect.
        counted: number of replies that were counted.
        aborted: True if the round ended without a result.
    """

    round: int
    down: int
    up: int
    wire: str
    counted: int
    aborted: bool = False


@dataclass(frozen=True)
class ResumePoint:
    """The state from which a federation resumes.

    Attributes:
        finished_rounds: number of rounds that are over.
        params: parameters after the last closed round; None if no round was closed.
        state: server state after the last closed round; empty if no round was closed.
    """

    finished_rounds: int
    params: Params | None
    state: Params


class Journal:
    """The round journal of a federation in the folder `root`.

    Its files are `journal.jsonl`, `ledger.jsonl` (unless another `ledger` is given) and `checkpoints/`.

    Args:
        root: the folder of the journal; it is made if it is missing.
        ledger: the ledger of the federation; None for `ledger.jsonl` in `root`.

    Raises:
        VerificationFailed: an entry was changed.
    """

    def __init__(self, root: Path, ledger: AppendLog | None = None) -> None:
        self.root = root
        self.log = AppendLog(root / "journal.jsonl")
        self.ledger = ledger or AppendLog(root / "ledger.jsonl")
        (root / "checkpoints").mkdir(exist_ok=True)
        self._ends: dict[int, dict[str, Any]] = {}
        for body in self.log.entries():
            self._index_end(body)
        self._spends = {_spend_key(body): body for body in self.ledger.entries()}

    def _index_end(self, body: dict[str, Any]) -> None:
        if body["kind"] in ("close", "abort"):
            self._ends[body["round"]] = body

    def _append(self, body: dict[str, Any]) -> None:
        self.log.append(body)
        self._index_end(body)

    @property
    def finished_rounds(self) -> int:
        """The number of rounds that are over: closed or aborted."""
        return max(self._ends, default=0)

    def bind(self, terms: dict[str, Any]) -> None:
        """Write the terms of the federation as the first entry, or compare them with those that the journal has.

        Args:
            terms: the public terms of the federation, as JSON values.

        Raises:
            Refused: the journal belongs to other terms; or it has rounds and names no terms.
        """
        body = {"kind": "terms", "terms": digest(terms)}
        if not self.log.entries():
            self._append(body)
        elif not self.log.contains(body):
            raise Refused(f"{self.root} holds a federation under other terms. Name another folder as out.")

    def record_open(self, number: int) -> None:
        """Record that the request of round `number` is about to be sent.

        Args:
            number: number of the round, from 1.
        """
        self.log.append({"kind": "open", "round": number}, durable=False)

    def record_spend(self, event: dict[str, Any]) -> Durable:
        """Make the privacy event of a round durable in the ledger, once.

        Args:
            event: the spend of the round, with its number under `round`.

        Returns:
            The proof that the event is durable.

        Raises:
            Refused: the round is over, or the ledger has an event of this round with other terms.
        """
        if self.finished_rounds >= event["round"]:
            raise Refused("This round is over; it cannot be spent again. Resume from the journal.")
        body = {"kind": "device-round", **event}
        if not self.ledger.contains(body):
            if _spend_key(body) in self._spends:
                raise Refused("This round was spent under other terms. Resume with the plan that it was begun with.")
            self.ledger.append(body)
            self._spends[_spend_key(body)] = body
        return Durable(int(event["round"]))

    def record_close(self, params: Params, traffic: Traffic, state: Params | None = None) -> None:
        """Write the checkpoint of parameters and server state, then the close entry that ends the round.

        Args:
            params: parameters after the round, float32 arrays by name.
            traffic: the messages of the round, in figures.
            state: server state after the round; None for none.

        Raises:
            StorageError: the disk refuses; the round is still open.
        """
        data = save(params | {f"{_STATE_PREFIX}{name}": value for name, value in (state or {}).items()})
        Files().replace(self._checkpoint(traffic.round), data)
        self._append({"kind": "close", "params": digest(data), **asdict(traffic)})

    def record_abort(self, traffic: Traffic) -> None:
        """Write the abort entry: the round is over without a result.

        Args:
            traffic: the messages of the round, in figures; `aborted` is True.

        Raises:
            StorageError: the disk refuses; the round is still open.
        """
        self._append({"kind": "abort", **asdict(traffic)})

    def traffic(self) -> list[Traffic]:
        """Return the traffic of all rounds that are over, oldest first."""
        names = Traffic.__dataclass_fields__
        return [Traffic(**{name: body[name] for name in names if name in body}) for body in self._ends.values()]

    def wire_digest(self) -> str:
        """Return one digest over the messages of all rounds that are over; a crash in between does not change it."""
        return digest([traffic.wire for traffic in self.traffic()])

    def resume(self) -> ResumePoint | None:
        """Return the state to resume from; None before the first round is over.

        Raises VerificationFailed if a checkpoint was changed.
        """
        if not self._ends:
            return None
        close_entry = self._last_close(self.finished_rounds)
        return ResumePoint(self.finished_rounds, *(self._read_checkpoint(close_entry) if close_entry else (None, {})))

    def params_at(self, number: int) -> Params:
        """Return the parameters after round `number`. An aborted round leaves the parameters as they were.

        Args:
            number: number of the round, from 1.

        Raises:
            NothingMatched: the round is not over, or no round up to it was closed.
            VerificationFailed: the checkpoint was changed.
        """
        entry = self._last_close(number) if number in self._ends else None
        if entry is None:
            raise NothingMatched(f"Round {number} is not closed. Run the federation on to it first.")
        return self._read_checkpoint(entry)[0]

    def _last_close(self, number: int) -> dict[str, Any] | None:
        entries = (self._ends[n] for n in range(number, 0, -1) if n in self._ends and self._ends[n]["kind"] == "close")
        return next(entries, None)

    def _read_checkpoint(self, entry: dict[str, Any]) -> tuple[Params, Params]:
        data = self._checkpoint(entry["round"]).read_bytes()
        if digest(data) != entry["params"]:
            raise VerificationFailed(f"The checkpoint of round {entry['round']} was changed. Restore it from a backup.")
        arrays = load(data)
        params = {name: value for name, value in arrays.items() if not name.startswith(_STATE_PREFIX)}
        return params, {name.removeprefix(_STATE_PREFIX): arrays[name] for name in arrays.keys() - params.keys()}

    def _checkpoint(self, number: int) -> Path:
        return self.root / "checkpoints" / f"round-{number:06d}.safetensors"


def _spend_key(body: dict[str, Any]) -> tuple[str, int]:
    """Return the key that has at most one spend: the name of the federation and the number of the round."""
    return str(body.get("plan", {}).get("run", "")), int(body.get("round", 0))
