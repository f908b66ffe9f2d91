"""Compute epsilon from the events of a vault's append-only ledger, by pure rules.

Invariants
- Epsilon is computed from spends and never stored. Failed, resumed, erased and rolled-back runs all count.
- The epsilon of a record composes every run that it was ever in. That of the subject is the greatest over records.
- A record is a stored text with a random id. The same text, erased and added again, is another record: see
  `fedmem.privacy.statement.readded_epsilon`.
- A run whose lineage is lost counts for every record. If all lineage is lost, everything composes.
- A training step that the durable charge does not cover is refused before it is taken (I6).
- No clock is read: the order of events is their order in the ledger.

The lineage of a spend is the list of the random ids of its records, sealed in the event. Ids of erased records stay.
The default of `delta` is 1e-5 (docs/design.md, §7).

    subject_epsilon(vault.ledger.events())
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from fedmem.errors import BudgetExceeded, VerificationFailed
from fedmem.privacy.accounting import epsilon_pld, rdp
from fedmem.privacy.plan import DELTA
from fedmem.privacy.spend import SpendEvent

SPEND, ENDED, ERASED = "spend", ("run_finished", "run_failed"), "erased"
State = Literal["open", "finished", "failed", "erased", "lost"]
Accountant = Callable[[Iterable[SpendEvent], float], float]
"""A function that composes spends at a delta: `epsilon_pld`, or `epsilon_rdp`, which is never below it."""


class LedgerEvent(Protocol):
    """An event of a vault's ledger, with the fields that these rules read."""

    @property
    def kind(self) -> str: ...

    @property
    def payload(self) -> Mapping[str, Any]: ...


Events = Iterable[LedgerEvent]


@dataclass(frozen=True)
class Charge:
    """The spend of one training run.

    Attributes:
        run: random id of the run.
        block: random id of the block version.
        spend: the facts from which its cost is computed.
        records: random ids of the records; None if the lineage is lost.
        release: digest of the release; "" if it is unknown.
    """

    run: str
    block: str
    spend: SpendEvent
    records: frozenset[str] | None
    release: str = ""

    def may_hold(self, record: str) -> bool:
        """Return True if the record was in this run, or if the lineage is lost.

        Args:
            record: random id of the record.
        """
        return self.records is None or record in self.records


def read_charges(events: Events) -> list[Charge]:
    """Return the spends of a ledger in order.

    Args:
        events: events of the ledger.

    Raises:
        VerificationFailed: a spend cannot be read.
    """
    return [_read_charge(event.payload) for event in events if event.kind == SPEND]


def _read_charge(payload: Mapping[str, Any]) -> Charge:
    try:
        records = payload.get("records")
        lineage = None if records is None else frozenset(map(str, records)) or None  # an empty lineage counts as lost
        spend, release = SpendEvent.from_dict(payload["spend"]), str(payload.get("release", ""))
        return Charge(str(payload["run"]), str(payload["block"]), spend, lineage, release)
    except (KeyError, TypeError, AttributeError) as error:
        raise VerificationFailed("The ledger holds a spend without its run; it was edited or damaged.") from error


def read_run_states(events: Events) -> dict[str, State]:
    """Return the state of each run by its id, in the order of the charges.

    | state | meaning |
    |---|---|
    | open | charged, not ended |
    | finished, failed | ended |
    | erased | an erasure took the run or its block |
    | lost | the charge stands for spends that a restored backup may lack |

    Args:
        events: events of the ledger.

    Raises:
        VerificationFailed: a run is charged twice, ends twice, ends without a charge, or ends in another block; or a
            spend cannot be read.
    """
    run_states, blocks, erased_ids = dict[str, State](), dict[str, str](), set[str]()
    for event in events:
        run = str(event.payload.get("run"))
        if event.kind == SPEND:
            _check_consistent(run not in run_states)
            charge = _read_charge(event.payload)
            run_states[run] = "open" if charge.release or charge.records is not None else "lost"
            blocks[run] = charge.block
        elif event.kind in ENDED:
            is_finished = event.kind == ENDED[0]
            _check_consistent(
                run_states.get(run) == "open" and (not is_finished or event.payload.get("block") == blocks[run])
            )
            run_states[run] = "finished" if is_finished else "failed"
        elif event.kind == ERASED:
            erased_ids |= set(event.payload.get("ids", ()))
    return {run: "erased" if {run, blocks[run]} & erased_ids else state for run, state in run_states.items()}


def _check_consistent(is_consistent: bool) -> None:
    if not is_consistent:
        raise VerificationFailed("The ledger contradicts itself about a run; restore the vault from a backup.")


def block_epsilon(events: Events, block: str, delta: float = DELTA) -> float:
    """Return the epsilon of one block version alone.

    Args:
        events: events of the ledger.
        block: id of the block version, or of its run. The result is 0 if the ledger does not name it.
        delta: strictly between 0 and 1.

    Raises:
        VerificationFailed: a spend cannot be read.
    """
    return _compose(read_charges(events), delta, lambda charge: block in (charge.block, charge.run))


def record_epsilon(events: Events, record: str, delta: float = DELTA) -> float:
    """Return the epsilon of one record, over every run that it was in or, with lost lineage, may have been in.

    Args:
        events: events of the ledger.
        record: random id of the record. The result counts only runs with lost lineage if the ledger does not name it.
        delta: strictly between 0 and 1.

    Raises:
        VerificationFailed: a spend cannot be read.
    """
    return _compose(read_charges(events), delta, lambda charge: charge.may_hold(record))


def subject_epsilon(events: Events, delta: float = DELTA, accountant: Accountant = epsilon_pld) -> float:
    """Return the greatest epsilon of any record of the subject, present or erased.

    Guarantees: an upper bound for every record. All runs that name the record compose, and all runs without lineage.

    | case | result |
    |---|---|
    | empty ledger | 0 |
    | a run without noise | infinite |

    Args:
        events: events of the ledger.
        delta: strictly between 0 and 1.
        accountant: composes the spends.

    Raises:
        VerificationFailed: a spend cannot be read.
    """
    ledger = read_charges(events)
    return _greatest_epsilon(
        ledger, delta, {record for charge in ledger for record in charge.records or ()}, accountant
    )


def greatest_epsilon(
    events: Events, records: Collection[str], delta: float = DELTA, accountant: Accountant = epsilon_pld
) -> float:
    """Return the greatest epsilon of any of these records: the figure that `check_budget` compares with a budget.

    Args:
        events: events of the ledger.
        records: ids of the records.
        delta: strictly between 0 and 1.
        accountant: composes the spends.

    Raises:
        VerificationFailed: a spend cannot be read.
    """
    return _greatest_epsilon(read_charges(events), delta, records, accountant)


def check_budget(events: Events, new: SpendEvent, records: Collection[str], *, budget: float, delta: float) -> None:
    """Raise BudgetExceeded if a new run would bring the epsilon of one of its records above the budget.

    | case | result |
    |---|---|
    | the budget is NaN | refused |
    | epsilon infinite, budget finite | refused |

    Args:
        events: events of the ledger.
        new: the spend of the new run.
        records: ids of its records.
        budget: the greatest epsilon that is allowed.
        delta: strictly between 0 and 1.

    Raises:
        BudgetExceeded: the run would exceed the budget.
        VerificationFailed: a spend cannot be read.
    """
    ledger = [*read_charges(events), Charge("", "", new, frozenset(records))]
    if not _greatest_epsilon(ledger, delta, records) <= budget:
        raise BudgetExceeded("This run would pass the topic's privacy budget; nothing was trained or charged.")


def is_open(events: Events, release: str, records: Sequence[str], spend: Mapping[str, Any]) -> bool:
    """Return True if a run with exactly this release, records and spend is charged and has not ended.

    Resuming such a run costs nothing.

    Args:
        events: events of the ledger.
        release: digest of the release.
        records: ids of the records, in order.
        spend: JSON form of the spend.
    """
    charged, ended_runs = list[Mapping[str, Any]](), set[Any]()
    for event in events:
        if event.kind == SPEND:
            charged.append(event.payload)
        elif event.kind in ENDED:
            ended_runs.add(event.payload.get("run"))
    expected = (release, [*records], dict(spend))
    return any(
        (payload.get("release"), payload.get("records"), payload.get("spend")) == expected
        for payload in charged
        if payload.get("run") not in ended_runs
    )


def _compose(ledger: Iterable[Charge], delta: float, counts: Callable[[Charge], bool]) -> float:
    return epsilon_pld([charge.spend for charge in ledger if counts(charge)], delta)


def _greatest_epsilon(
    ledger: Sequence[Charge], delta: float, records: Collection[str], accountant: Accountant = epsilon_pld
) -> float:
    """Return the greatest epsilon over records. Only histories that are part of no other one are composed."""
    lost = frozenset(i for i, charge in enumerate(ledger) if charge.records is None)
    histories = {frozenset(i for i, charge in enumerate(ledger) if charge.may_hold(r)) for r in records} | {lost}
    longest = [runs for runs in histories if not any(runs < other for other in histories)]
    return max(accountant([ledger[i].spend for i in runs], delta) for runs in longest)


class Meter:
    """A counter of steps against one durable charge, by RDP at every order.

    Args:
        charge: the spend that the ledger was charged with.
    """

    def __init__(self, charge: SpendEvent) -> None:
        self._charge = rdp(((charge.sampling_rate, charge.noise_multiplier, charge.steps),))
        self._taken: dict[tuple[float, float], int] = {}

    def take(self, sampling_rate: float, noise_multiplier: float) -> None:
        """Count one more step, before it is taken.

        Args:
            sampling_rate: sampling rate of the step.
            noise_multiplier: noise multiplier of the step.

        Raises:
            BudgetExceeded: at some order all steps together cost more than the charge. The step is not counted.
        """
        mechanism = (sampling_rate, noise_multiplier)
        taken = self._taken | {mechanism: self._taken.get(mechanism, 0) + 1}
        spent = rdp(tuple((rate, noise, steps) for (rate, noise), steps in taken.items()))
        # An infinite charge covers an infinite cost. The slack allows for float rounding of two products.
        if not np.all((spent <= self._charge * (1 + 1e-9)) | (self._charge == np.inf)):
            raise BudgetExceeded("The next step is not covered by what the ledger was charged; training stopped.")
        self._taken = taken
