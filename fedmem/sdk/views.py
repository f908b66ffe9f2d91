"""What a client shows and does to its vault: blocks, erasure, privacy spent. The command line calls the same.

Invariants
- An erasure is planned first, without side effect, and executed with the digest of that plan.
- `execute` runs, verifies by rescan and gives the receipt; a partial or unverified one is an error, never a result.
- ε is computed from the ledger when asked, and stored nowhere.

    planned = client.erase.plan(topic="health")
    print(planned.counts)
    print(planned.execute().receipt)
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from fedmem import erasure
from fedmem.errors import UsageError, VerificationFailed
from fedmem.privacy.accounting import epsilon_rdp
from fedmem.privacy.ledger import block_epsilon, charges, subject_epsilon
from fedmem.privacy.plan import DELTA
from fedmem.privacy.spend import SpendEvent
from fedmem.vault.vault import BlockInfo, Vault


class Blocks:
    """The private blocks of a vault."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def list(self) -> list[BlockInfo]:
        """All blocks, every version."""
        return self._vault.blocks()

    def get(self, id_or_topic: str) -> BlockInfo:
        """One block. Raises NothingMatched."""
        return self._vault.block(id_or_topic)


@dataclass(frozen=True)
class Spent:
    """One training run in the ledger; `topic` is None where its block was erased or never finished."""

    run: str
    block: str
    topic: str | None
    epsilon: float


@dataclass(frozen=True)
class Budget:
    """What a vault spent: `epsilon` bounds every record, present or erased; `runs` are the parts, each alone."""

    epsilon: float
    delta: float
    accountant: Literal["pld", "rdp"]
    runs: list[Spent]


class Privacy:
    """The privacy ledger of a vault."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def budget(self) -> Budget:
        """ε so far at δ = 1e-5, by PLD; where `dp-accounting` is not installed by RDP, a greater upper bound.

        Raises VerificationFailed where the ledger's chain does not hold. 0 for an empty ledger, infinite without noise.
        """
        events = self._vault.ledger.events()
        topics = {block.id: block.topic for block in self._vault.blocks()}
        tight = find_spec("dp_accounting") is not None

        def alone(block: str, spend: SpendEvent) -> float:
            return block_epsilon(events, block) if tight else epsilon_rdp([spend], DELTA)

        found = charges(events)
        runs = [Spent(c.run, c.block, topics.get(c.block), alone(c.block, c.spend)) for c in found]
        whole = subject_epsilon(events) if tight else epsilon_rdp([charge.spend for charge in found], DELTA)
        return Budget(whole, DELTA, "pld" if tight else "rdp", runs)


@dataclass(frozen=True)
class Erased:
    """A finished and verified erasure.

    Attributes:
        receipt: the signed receipt file; `device.pub` beside it in the vault checks it.
        items: store -> number of items that it let go.
        not_covered: what the erasure cannot reach.
        opening: hex; opens the receipt's commitment to the scope. Kept nowhere else.
        retrained: ids of the blocks that were trained anew.
    """

    id: str
    state: str
    receipt: Path
    verified: bool
    counts: dict[str, int]
    items: dict[str, int]
    not_covered: list[str]
    opening: str
    retrained: list[str]


class PlannedErasure:
    """What an erasure would destroy; nothing happens before `execute`.

    Attributes:
        digest: hex; names exactly this plan.
        counts, items: what is in scope, by kind and by store.
        blocks: blocks that had learned a record of the scope and go with it.
        retrained: how many blocks are trained anew in their place.
    """

    def __init__(self, vault: Vault, plan: erasure.Plan, retrain: erasure.Retrain | None = None) -> None:
        self._vault, self._plan, self._retrain = vault, plan, retrain
        self.digest = plan.digest
        self.counts = plan.counts
        self.items = dict(Counter(item.store for item in plan.items))
        self.blocks, self.retrained = list(plan.deleted), len(plan.retrain)

    def execute(self, digest: str | None = None) -> Erased:
        """Destroy, rescan, check the receipt, train anew; `digest` is that of the plan that a person saw.

        Raises PartialErasure, VerificationFailed, Refused, BudgetExceeded, StorageError.
        """
        outcome = erasure.execute(self._vault, self._plan, digest or self.digest, retrain=self._retrain)
        if not erasure.verify(self._vault, outcome.id).clean:
            raise VerificationFailed(f"Erasure {outcome.id} ran, but a rescan finds something. `fedmem erase status`.")
        key = (self._vault.root / "device.pub").read_bytes()
        statement = erasure.receipt.verify(outcome.receipt_path.read_bytes(), key)
        not_covered = [str(line) for line in statement["predicate"]["not_covered"]]
        receipt, opening = outcome.receipt_path, outcome.opening
        found = outcome.id, outcome.state, receipt, True, self.counts, self.items, not_covered, opening
        return Erased(*found, list(outcome.retrained))


class Erase:
    """Erasures of a vault; `retrain` trains blocks anew without erased records, where there is a release for it."""

    def __init__(self, vault: Vault, retrain: erasure.Retrain | None = None) -> None:
        self._vault, self._retrain = vault, retrain

    def plan(
        self,
        *,
        block: str | None = None,
        topic: str | None = None,
        record: Sequence[str] | None = None,
        before: datetime | None = None,
        due: bool = False,
        subject: bool = False,
        blocks: erasure.Choice | None = None,
    ) -> PlannedErasure:
        """Plan the erasure of one scope: a block (id or topic), a topic, records by id, everything from before a
        date, what is due by `keep`, or everything of this subject.

        A block goes with every version of it, and with its topic's records, vectors and run keys. Records, a date and
        what is due take records alone; `blocks` says whether a block that learned one of them is trained anew without
        it ("retrain", checked against the budget here) or goes for good ("delete").

        Raises UsageError unless exactly one scope is named, NothingMatched where the vault holds nothing of it, and
        BudgetExceeded or Refused where a block cannot be trained anew.
        """
        scopes = [erasure.Scope.block(block)] if block is not None else []
        scopes += [erasure.Scope.topic(topic)] if topic is not None else []
        scopes += [erasure.Scope.record(*record)] if record is not None else []
        scopes += [erasure.Scope.before(before)] if before is not None else []
        scopes += [erasure.Scope.due()] if due else []
        scopes += [erasure.Scope.subject()] if subject else []
        if len(scopes) != 1:
            raise UsageError("Name one scope to erase: a block, a topic, records, a date, what is due, or the subject.")
        planned = erasure.plan(self._vault, scopes[0], blocks=blocks)
        if self._retrain is not None:
            for wanted in planned.retrain:
                self._retrain.check(self._vault, wanted)
        return PlannedErasure(self._vault, planned, self._retrain)

    def keep(self, topic: str, days: float | None) -> None:
        """Set for how many days records of a topic are kept (None: no limit); `plan(due=True)` erases older ones."""
        self._vault.keep(topic, days)

    def kept(self) -> dict[str, float]:
        """Topic -> days, of the topics with a limit."""
        return self._vault.retention()

    def verify(self, erasure_id: str, *, deep: bool = False) -> erasure.Verification:
        """Rescan for an erasure; `deep` reads every byte under the root. Raises NothingMatched."""
        return erasure.verify(self._vault, erasure_id, deep=deep)

    def cancel(self, erasure_id: str) -> erasure.Status:
        """Cancel an erasure that has not begun, or give up a retraining that has not. Raises Refused."""
        return erasure.cancel(self._vault, erasure_id)

    def status(self) -> list[erasure.Status]:
        """Every erasure of the vault, oldest first."""
        return erasure.status(self._vault)

    def resume(self) -> list[erasure.Outcome]:
        """Finish what was left unfinished, retraining included. Raises PartialErasure where it still cannot."""
        return erasure.resume(self._vault, retrain=self._retrain)
