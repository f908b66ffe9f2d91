"""The calls that a thread of a worker makes on an open vault, each one in the journal.

Invariants
- A call is asked in the journal, made, and its outcome is written: ids and digests, or the name of the error.
- An error that is not of fedmem is written with its place, never with its text, and the worker goes on.
"""

import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from fedmem import erasure
from fedmem.erasure import Scope
from fedmem.errors import FedmemError
from fedmem.sdk.client import Client
from fedmem.vault.backup import backup, recovery
from fedmem.vault.vault import StaleReader, Vault
from tests.stress import content
from tests.stress.journal import FAILED, OK, Journal

Facts = dict[str, Any]
STALE: Facts = {}
ATTEMPTS = 4  # plans of one erasure: others change the vault between a plan and its execution


def attempt(journal: Journal, op: str, work: Callable[[], Facts], **asked: Any) -> Facts | None:
    """Make a call and write its outcome; return the facts of a success, STALE to a stale reader, else None."""
    number = journal.ask(op, **asked)
    try:
        facts = work()
    except FedmemError as error:
        journal.end(number, FAILED, type=type(error).__name__, typed=True, place=place_of(error))
        return None if not isinstance(error, StaleReader) else STALE
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is counted
        journal.end(number, FAILED, type=type(error).__name__, typed=False, place=place_of(error))
        return None
    journal.end(number, OK, **facts)
    return facts


def place_of(error: BaseException) -> str:
    """Return files and lines of the last calls before an error, without its text."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))


class Writer:
    """Calls on a vault that is open for writing. `base` is the folder of the whole run."""

    def __init__(self, vault: Vault, journal: Journal, draw: Random, base: Path) -> None:
        self.vault, self.journal, self.draw, self.base = vault, journal, draw, base
        self.added: list[str] = []
        self.is_stale = False

    def step(self) -> None:
        """Make one drawn call."""
        names, weights = zip(*WEIGHTS.items(), strict=True)
        getattr(self, self.draw.choices(names, weights)[0])()

    def add(self) -> None:
        """Add one record."""
        self._add(1)

    def add_batch(self) -> None:
        """Add several records of one topic at once."""
        self._add(self.draw.randint(2, 40))

    def read(self) -> None:
        """Read records that this thread added before."""
        if ids := self.draw.sample(self.added, min(3, len(self.added))):
            self._call("read", lambda: _digests(self.vault.records_by_id(ids)), ids=ids)

    def search(self) -> None:
        """Search near a vector."""
        vector = content.vector_of(str(self.draw.random()))
        self._call("search", lambda: _digests([record for record, _ in self.vault.search(vector, 5)]))

    def learn(self) -> None:
        """Charge a run, save a checkpoint, and seal a block."""
        topic, rows = self.draw.choice(content.TOPICS), content.new_rows()
        plan, runs = {"steps": self.draw.randrange(10**9)}, []

        def begin() -> Facts:
            runs.append(self.vault.begin_run(topic, content.RELEASE, plan, "data", [], {"sigma": 1.0}))
            return {"run": runs[0].id}

        def finish() -> Facts:
            return {"block": self.vault.finish_run(runs[0], topic, content.RELEASE, rows, 2, 4, 8).id}

        if self._call("begin", begin) is None:
            return
        self._call("checkpoint", lambda: self.vault.save_checkpoint(runs[0], 1, rows) or {})
        if self.draw.random() < 0.9:
            self._call("finish", finish, digest=content.digest_of(rows.decode()))

    def erase(self) -> None:
        """Plan an erasure, and execute it by its digest. Plan again if it failed: the vault may have changed."""
        scope, blocks = self._scope()
        for _ in range(ATTEMPTS):
            planned = self._plan(scope, blocks)
            if planned is None or self._execute(planned):
                return

    def resume(self) -> None:
        """Resume the erasures that others left unfinished."""
        self._call("resume", lambda: {"erasures": [outcome.id for outcome in erasure.resume(self.vault)]})

    def backup(self) -> None:
        """Write a backup."""
        place = self.base / "copies" / os.urandom(8).hex()
        self._call("backup", lambda: {"backup": backup.create(self.vault, place).id}, place=place.name)

    def kit(self) -> None:
        """Write a recovery kit."""
        place = self.base / "copies" / f"{os.urandom(8).hex()}.kit"
        self._call("kit", lambda: {"kit": recovery.create(self.vault, place)[0]})

    def ledger(self) -> None:
        """Check the whole privacy ledger."""
        self._call("ledger", lambda: {"events": len(self.vault.ledger.events())})

    def _add(self, count: int) -> None:
        topic = self.draw.choice([*content.TOPICS, None])
        texts = [content.new_text(topic) for _ in range(count)]
        records, digests = [content.record(text) for text in texts], [content.digest_of(text) for text in texts]
        facts = self._call("add", lambda: {"ids": self.vault.add_records(records)}, digests=digests)
        self.added = [*self.added, *(facts or {}).get("ids", ())][-100:]

    def _scope(self) -> tuple[Scope, erasure.Choice | None]:
        kind = self.draw.random()
        if kind < 0.3 and self.added:
            return Scope.record(*self.draw.sample(self.added, min(3, len(self.added)))), "delete"
        if kind > 0.99:
            return Scope.subject(), None
        return Scope.topic(self.draw.choice(content.TOPICS)), None

    def _plan(self, scope: Scope, blocks: erasure.Choice | None) -> erasure.Plan | None:
        plans: list[erasure.Plan] = []
        self._call("plan", lambda: plans.append(erasure.plan(self.vault, scope, blocks=blocks)) or {})
        return plans[0] if plans else None

    def _execute(self, planned: erasure.Plan) -> bool:
        """Execute a plan, and return True if it is completed."""
        outcome = self._call(
            "erase",
            lambda: {"erasure": erasure.execute(self.vault, planned, planned.digest).id},
            ids=sorted(planned.ids),
            salts=[item.salt for item in planned.items if item.salt],
        )
        return outcome is not None

    def _call(self, op: str, work: Callable[[], Facts], **asked: Any) -> Facts | None:
        facts = attempt(self.journal, op, work, **asked)
        self.is_stale = self.is_stale or facts is STALE
        return None if facts is STALE else facts


WEIGHTS = {
    "add": 50, "add_batch": 20, "read": 10, "search": 4, "learn": 3, "erase": 2, "resume": 1.5, "backup": 0.5,
    "kit": 0.5, "ledger": 0.5,
}  # fmt: skip
"""How often a writer makes each call."""


class Reader(Writer):
    """Calls on a vault that is open for reading only."""

    def step(self) -> None:
        """Make one drawn call, after a moment in which writers have the processor."""
        time.sleep(self.draw.uniform(0.0, 0.1))
        self.draw.choice([self.search, self.search, self.ledger, self.everything])()

    def everything(self) -> None:
        """Read all blocks, and the records of a topic."""
        topic = self.draw.choice(content.TOPICS)
        self._call("blocks", lambda: {"blocks": [block.id for block in self.vault.blocks()]})
        self._call("search", lambda: _digests(self.vault.records(topic)))


class App:
    """Calls of an app on its client."""

    def __init__(self, client: Client, journal: Journal, draw: Random, base: Path) -> None:
        self.client, self.journal, self.draw, self.is_stale = client, journal, draw, False

    def step(self) -> None:
        """Add a text, or search."""
        text = f"{content.TEXT} {os.urandom(16).hex()}"
        if self.draw.random() < 0.8:
            asked = {"digests": [content.digest_of(text)]}
            attempt(self.journal, "add", lambda: {"ids": [self.client.add(text, "health").id]}, **asked)
        else:
            attempt(self.journal, "search", lambda: _digests(self.client.search(text)))


def _digests(records: Any) -> Facts:
    return {"found": {record.id: content.digest_of(record.text) for record in records}}
