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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fedmem import erasure
from fedmem.errors import Refused, UsageError, VerificationFailed
from fedmem.policy.policy import Policy, Topic
from fedmem.privacy.accounting import epsilon_pld, epsilon_rdp
from fedmem.privacy.ledger import Accountant, charges, states, subject_epsilon
from fedmem.privacy.plan import DELTA
from fedmem.privacy.statement import Spent, Statement, runs_spent, topics_spent
from fedmem.vault.store import ledger_anchor as heads
from fedmem.vault.vault import ALL, BlockInfo, Event, Vault

if TYPE_CHECKING:
    from fedmem.training.release import Release


class Blocks:
    """The private blocks of a vault; `policy` holds the budgets for moving one to another release."""

    def __init__(self, vault: Vault, policy: Policy | None = None) -> None:
        self._vault, self._policy = vault, policy

    def list(self) -> list[BlockInfo]:
        """All blocks, every version."""
        return self._vault.blocks()

    def get(self, id_or_topic: str) -> BlockInfo:
        """One block. Raises NothingMatched."""
        return self._vault.block(id_or_topic)

    def migrate(self, id_or_topic: str, release: "str | Path | Release") -> BlockInfo:
        """Train the block's topic anew on another release, with its plan, charged to the topic's budget.

        The old block stays, and answers through its own release. Raises Refused, BudgetExceeded (nothing is charged),
        NothingMatched; more in `fedmem.device.training_sessions.migrate`.
        """
        from fedmem.device.training_sessions import migrate
        from fedmem.device.vault_access import ExclusiveAccess
        from fedmem.sdk.client import open_release

        if self._policy is None:
            raise Refused("Moving a block needs the policy that holds its topic's budget: open it through a Client.")
        trained = migrate(ExclusiveAccess(self._vault), id_or_topic, open_release(release), self._policy)
        return self._vault.block(trained.block or "")


@dataclass(frozen=True)
class Budget:
    """What a vault spent: `epsilon` bounds every record, present or erased; `runs` are the parts, each alone."""

    epsilon: float
    delta: float
    accountant: Literal["pld", "rdp"]
    runs: list[Spent]


@dataclass(frozen=True)
class CheckedLedger:
    """A ledger that held.

    Attributes:
        head: digest of the last event; "" where there is none.
        noted: how many of the events the keystore vouches for; None where it knows of none, so that a cut at the end
            would show only in the runs that the vault still holds.
    """

    head: str
    events: int
    runs: int
    noted: int | None


class Privacy:
    """The privacy ledger of a vault."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def budget(self) -> Budget:
        """ε so far at δ = 1e-5, by PLD; where `dp-accounting` is not installed by RDP, a greater upper bound.

        Raises VerificationFailed where the ledger does not hold. 0 for an empty ledger, infinite without noise.
        """
        events, tight = self._vault.ledger.events(), _tight()
        accountant = _accountant(tight)
        runs = runs_spent(events, self._topics(events), accountant)
        return Budget(subject_epsilon(events, DELTA, accountant), DELTA, "pld" if tight else "rdp", runs)

    def report(self, budgets: Mapping[str, Topic]) -> Statement:
        """All that a report says, against the topics of a policy. Raises as `budget`."""
        checked, events = self._checked()
        tight, names = _tight(), self._topics(events)
        accountant = _accountant(tight)
        return Statement(
            vault=self._vault.id,
            simulated=self._vault.simulated,
            delta=DELTA,
            epsilon_pld=subject_epsilon(events, DELTA, epsilon_pld) if tight else None,
            epsilon_rdp=subject_epsilon(events, DELTA, epsilon_rdp),
            topics=topics_spent(events, budgets, set(names.values()), self._vault.ids_of, accountant),
            runs=runs_spent(events, names, accountant),
            events=checked.events,
            head=checked.head,
            noted=checked.noted,
        )

    def verify(self) -> CheckedLedger:
        """Check the ledger: its chain, the head in the keystore, every spend, every run, and every block's charge.

        Raises VerificationFailed for a ledger that is missing, edited, shortened or at odds with the vault.
        """
        return self._checked()[0]

    def _checked(self) -> tuple[CheckedLedger, list[Event]]:
        # Blocks and runs before events: what ends meanwhile is in the ledger before it is compared.
        blocks, runs = self._vault.blocks(), self._vault.runs_by_id(self._vault.ids_of(ALL))
        known = heads.noted(self._vault.core.keystore)
        events = self._vault.ledger.events()
        now, blocks_of = states(events), {charge.run: charge.block for charge in charges(events)}
        ended = {run.id: run.state for run in runs if run.state in ("finished", "failed")}
        uncharged = [block.id for block in blocks if blocks_of.get(block.run_id) != block.id]
        if uncharged or any(now[run] not in (state, "erased") for run, state in ended.items()):
            raise VerificationFailed(
                "The ledger and the vault's blocks and runs differ. Restore the vault from a backup."
            )
        # A restored vault may know of a later event than its ledger holds, and counts ε as infinite then.
        noted = known[0] + 1 if known is not None and heads.holds(self._vault.core, known) else None
        return CheckedLedger(events[-1].digest if events else "", len(events), len(now), noted), events

    def _topics(self, events: Sequence[Event]) -> dict[str, str]:
        """Run id -> topic, of the runs that were not erased."""
        return {run.id: run.topic for run in self._vault.runs_by_id({charge.run for charge in charges(events)})}


def _tight() -> bool:
    return find_spec("dp_accounting") is not None


def _accountant(tight: bool) -> Accountant:
    return epsilon_pld if tight else epsilon_rdp


@dataclass(frozen=True)
class Erased:
    """A finished and verified erasure.

    Attributes:
        receipt: the signed receipt file; `device.pub` beside it in the vault checks it.
        items: store -> number of items that it let go.
        not_covered: what the erasure cannot reach.
        opening: hex; opens the receipt's commitment to the scope. The vault keeps it sealed until
            `Erase.confirm_delivery`.
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

    def opening(self, erasure_id: str) -> str:
        """Return the opening of an erasure's receipt, 64 hexadecimal digits, as long as its delivery is not confirmed.

        Raises NothingMatched for an unknown id, and if the vault does not hold the opening.
        """
        return erasure.openings.read(self._vault, erasure_id)

    def confirm_delivery(self, erasure_id: str) -> None:
        """Remove the sealed opening of an erasure from the vault; call it when the person has the opening.

        Raises NothingMatched for an unknown id; StorageError or Busy, and the opening then stays.
        """
        erasure.openings.confirm_delivery(self._vault, erasure_id)

    def cancel(self, erasure_id: str) -> erasure.Status:
        """Cancel an erasure that has not begun, or give up a retraining that has not. Raises Refused."""
        return erasure.cancel(self._vault, erasure_id)

    def status(self) -> list[erasure.Status]:
        """Every erasure of the vault, oldest first."""
        return erasure.status(self._vault)

    def resume(self) -> list[erasure.Outcome]:
        """Finish what was left unfinished, retraining included. Raises PartialErasure where it still cannot."""
        return erasure.resume(self._vault, retrain=self._retrain)
