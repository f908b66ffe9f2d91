"""The privacy ledger of a vault, for the client and the command line.

Invariants
- ε is computed from the ledger when it is asked for, and never stored.
- A figure is returned only if the ledger verifies.

    budget = client.privacy.budget()
    print(budget.epsilon, budget.delta, [run.topic for run in budget.runs])
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from fedmem.errors import VerificationFailed
from fedmem.policy.policy import FederationLimits, Topic
from fedmem.privacy.accounting import epsilon_pld, epsilon_rdp
from fedmem.privacy.ledger import Accountant, read_charges, read_run_states, subject_epsilon
from fedmem.privacy.plan import DELTA
from fedmem.privacy.statement import Spent, Statement, greatest_readded_epsilon, runs_spent, topics_spent
from fedmem.sdk.egress import Egress
from fedmem.vault.store import ledger_anchor
from fedmem.vault.store.runs import RunRecord
from fedmem.vault.vault import ALL, Event, Vault

__all__ = ["Budget", "CheckedLedger", "Privacy"]


@dataclass(frozen=True)
class Budget:
    """The privacy spent by a vault.

    Attributes:
        epsilon: ε that bounds every record, present or erased.
        epsilon_readded: ε that bounds a person whose text was erased and added again, which makes it a new record: all
            trainings of a topic composed, the greatest of any topic.
        delta: δ of both figures: the smallest of any plan that the vault still knows, 1e-5 if it knows none.
        accountant: `pld`, or `rdp` if `dp-accounting` is not installed.
        runs: The training runs, each with the ε of it alone, at the δ of its plan.
    """

    epsilon: float
    epsilon_readded: float
    delta: float
    accountant: Literal["pld", "rdp"]
    runs: list[Spent]


@dataclass(frozen=True)
class CheckedLedger:
    """A ledger that was verified.

    Attributes:
        head: Digest of the last event, or "" if there is none.
        events: Number of events.
        runs: Number of training runs.
        noted: Number of events that the keystore's note confirms. None if the keystore has no note: events that were
            cut off the end are then noticed only if the vault still holds their run.
    """

    head: str
    events: int
    runs: int
    noted: int | None


class Privacy:
    """The privacy ledger of a vault.

    Args:
        vault: The open vault.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def budget(self) -> Budget:
        """Return ε so far.

        Guarantees: ε is an upper bound for every record, erased ones included. It is computed by PLD, or by RDP if
        `dp-accounting` is not installed. The bound by RDP is greater. An older copy of the vault is noticed; a copy of
        the vault together with its keystore is not, and has forgotten what was spent since.

        | case | ε |
        |---|---|
        | an empty ledger | 0 |
        | a run without noise | infinite |

        Raises:
            VerificationFailed: The ledger does not verify.
        """
        events, has_pld = self._vault.ledger.events(), _has_pld()
        accountant, runs = _accountant(has_pld), self._runs(events)
        topics, deltas = _topics(runs), _deltas(runs)
        delta = min(deltas.values(), default=DELTA)
        return Budget(
            epsilon=subject_epsilon(events, delta, accountant),
            epsilon_readded=greatest_readded_epsilon(events, topics, delta, accountant),
            delta=delta,
            accountant="pld" if has_pld else "rdp",
            runs=runs_spent(events, topics, deltas, accountant),
        )

    def report(self, budgets: Mapping[str, Topic], limits: FederationLimits | None = None) -> Statement:
        """Return the statement of the privacy spent: the guarantee, the budgets, the runs and the limits.

        Args:
            budgets: Topics of a policy, by name.
            limits: Its limits for the federations of this device. None takes those of the floor policy.

        Raises:
            VerificationFailed: The privacy ledger or the egress ledger does not verify.
        """
        checked, events = self._checked()
        has_pld, runs = _has_pld(), self._runs(events)
        accountant, topics, deltas = _accountant(has_pld), _topics(runs), _deltas(runs)
        delta = min(deltas.values(), default=DELTA)
        return Statement(
            vault=self._vault.id,
            simulated=self._vault.simulated,
            delta=delta,
            epsilon_pld=subject_epsilon(events, delta, epsilon_pld) if has_pld else None,
            epsilon_rdp=subject_epsilon(events, delta, epsilon_rdp),
            epsilon_readded=greatest_readded_epsilon(events, topics, delta, accountant),
            topics=topics_spent(events, budgets, topics, self._vault.ids_of, accountant),
            runs=runs_spent(events, topics, deltas, accountant),
            lifetime=Egress(self._vault).lifetime(limits),
            events=checked.events,
            head=checked.head,
            noted=checked.noted,
        )

    def verify(self) -> CheckedLedger:
        """Check the ledger: its chain, its head in the keystore, every spend, every run, and every block's charge.

        Raises:
            VerificationFailed: The ledger is missing, edited or shortened, or differs from the vault.
        """
        return self._checked()[0]

    def _checked(self) -> tuple[CheckedLedger, list[Event]]:
        # Read blocks and runs before events: a run that ends meanwhile is then in the ledger when they are compared.
        blocks, runs = self._vault.blocks(), self._vault.runs_by_id(self._vault.ids_of(ALL))
        noted_head = ledger_anchor.read_note(self._vault.core.keystore)
        events = self._vault.ledger.events()
        ledger_states, blocks_of = (
            read_run_states(events),
            {charge.run: charge.block for charge in read_charges(events)},
        )
        ended_runs = {run.id: run.state for run in runs if run.state in ("finished", "failed")}
        uncharged = [block.id for block in blocks if blocks_of.get(block.run_id) != block.id]
        if uncharged or any(ledger_states[run] not in (state, "erased") for run, state in ended_runs.items()):
            raise VerificationFailed(
                "The ledger and the vault's blocks and runs differ. Restore the vault from a backup."
            )
        # The keystore of a restored vault may note a later event than its ledger holds. ε is infinite then.
        noted = (
            noted_head[0] + 1
            if noted_head is not None and ledger_anchor.has_event(self._vault.core, noted_head)
            else None
        )
        return CheckedLedger(events[-1].digest if events else "", len(events), len(ledger_states), noted), events

    def _runs(self, events: Sequence[Event]) -> list[RunRecord]:
        """Return the charged runs that were not erased."""
        return self._vault.runs_by_id({charge.run for charge in read_charges(events)})


def _topics(runs: Sequence[RunRecord]) -> dict[str, str]:
    return {run.id: run.topic for run in runs}


def _deltas(runs: Sequence[RunRecord]) -> dict[str, float]:
    """Return run id -> δ of its plan, for plans that name one."""
    plans = {run.id: run.plan.get("privacy", {}) for run in runs}
    return {run: float(plan["delta"]) for run, plan in plans.items() if "delta" in plan}


def _has_pld() -> bool:
    return find_spec("dp_accounting") is not None


def _accountant(has_pld: bool) -> Accountant:
    return epsilon_pld if has_pld else epsilon_rdp
