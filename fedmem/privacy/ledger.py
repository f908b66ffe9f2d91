"""What was spent, composed on demand: pure rules over the vault's append-only ledger.

Invariants
- Epsilon is computed from spends and never stored; failed, resumed, erased and rolled-back runs all count.
- A record's figure composes every run that it was ever in; the subject's is the greatest of its records'.
- A run whose lineage is lost counts for every record; with no lineage at all everything composes.
- A training step that the durable charge does not cover is refused before it is taken (I6).

`lineage` maps a run's random id to the ids of the records it trained on, erased records included.

>>> ledger = [Charge("run-1", SpendEvent(0.1, 1.0, 60)), Charge("run-2", SpendEvent(0.1, 1.0, 60))]
>>> apart = subject_epsilon(ledger, 1e-5, {"run-1": {"a"}, "run-2": {"b"}})
>>> bool(apart == run_epsilon(ledger, "run-1", 1e-5) < subject_epsilon(ledger, 1e-5, None))
True
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fedmem.errors import BudgetExceeded, VerificationFailed
from fedmem.privacy.accounting import epsilon_pld, rdp
from fedmem.privacy.spend import SpendEvent

SPEND = "spend"
Lineage = Mapping[str, Collection[str]]


class LedgerEvent(Protocol):
    """A row of a vault's ledger, as far as these rules read it."""

    @property
    def kind(self) -> str: ...

    @property
    def payload(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Charge:
    """One training run's spend, under the run's random id."""

    run: str
    spend: SpendEvent


def charges(events: Iterable[LedgerEvent]) -> list[Charge]:
    """The spends of a ledger, in order. Raises VerificationFailed for a spend that cannot be read."""
    found = []
    for event in events:
        if event.kind == SPEND:
            try:
                found.append(Charge(str(event.payload["run"]), SpendEvent.from_dict(event.payload["spend"])))
            except (KeyError, TypeError) as error:
                raise VerificationFailed("The ledger holds a spend without a run; it was edited or damaged.") from error
    return found


def run_epsilon(ledger: Iterable[Charge], run: str, delta: float) -> float:
    """Epsilon of one run alone: what its block version reveals by itself. 0 for a run the ledger does not name."""
    return epsilon_pld([charge.spend for charge in ledger if charge.run == run], delta)


def record_epsilon(ledger: Sequence[Charge], delta: float, lineage: Lineage, record: str) -> float:
    """Epsilon of one record over every run that it was, or may have been, in."""
    return _composed(ledger, _runs_of(ledger, lineage, record), delta)


def subject_epsilon(ledger: Sequence[Charge], delta: float, lineage: Lineage | None) -> float:
    """Greatest epsilon of any record of the subject; everything composed where `lineage` is None (lost).

    Guarantees: an upper bound for every record, present or erased, as long as `lineage` names erased records
    under the runs they were in, or leaves those runs out.
    """
    if lineage is None:
        return epsilon_pld([charge.spend for charge in ledger], delta)
    return _greatest(ledger, delta, lineage, {record for records in lineage.values() for record in records})


def check_budget(
    ledger: Sequence[Charge],
    new: SpendEvent,
    *,
    budget: float,
    delta: float,
    lineage: Lineage | None,
    records: Collection[str],
) -> None:
    """Refuse a run on `records` that would bring one of them above `budget`. Raises BudgetExceeded.

    A budget that is NaN refuses everything; so does an infinite epsilon against a finite budget.
    """
    if lineage is None:
        after = epsilon_pld([*(charge.spend for charge in ledger), new], delta)
    else:
        pending = "\0the run to come"
        after = _greatest([*ledger, Charge(pending, new)], delta, {**lineage, pending: records}, records)
    if not after <= budget:
        raise BudgetExceeded("This run would pass the topic's privacy budget; nothing was trained or charged.")


def _runs_of(ledger: Iterable[Charge], lineage: Lineage, record: str) -> frozenset[str]:
    return frozenset(c.run for c in ledger if c.run not in lineage or record in lineage[c.run])


def _composed(ledger: Iterable[Charge], runs: frozenset[str], delta: float) -> float:
    return epsilon_pld([charge.spend for charge in ledger if charge.run in runs], delta)


def _greatest(ledger: Sequence[Charge], delta: float, lineage: Lineage, records: Collection[str]) -> float:
    """Greatest epsilon over records; those that were in the same runs are computed once."""
    unknown = frozenset(charge.run for charge in ledger if charge.run not in lineage)
    histories = {_runs_of(ledger, lineage, record) for record in records} | {unknown}
    longest = [runs for runs in histories if not any(runs < other for other in histories)]
    return max(_composed(ledger, runs, delta) for runs in longest)


class Meter:
    """Counts steps against one durable charge, by RDP at every order, before each is taken."""

    def __init__(self, charge: SpendEvent) -> None:
        self._charge = rdp(((charge.sampling_rate, charge.noise_multiplier, charge.steps),))
        self._taken: dict[tuple[float, float], int] = {}

    def take(self, sampling_rate: float, noise_multiplier: float) -> None:
        """Count one more step. Raises BudgetExceeded if all steps together cost more than the charge at any order."""
        mechanism = (sampling_rate, noise_multiplier)
        taken = self._taken | {mechanism: self._taken.get(mechanism, 0) + 1}
        spent = rdp(tuple((rate, noise, steps) for (rate, noise), steps in taken.items()))
        # An infinite charge covers infinite cost; the slack is float rounding of a product against a product.
        if not np.all((spent <= self._charge * (1 + 1e-9)) | (self._charge == np.inf)):
            raise BudgetExceeded("The next step is not covered by what the ledger was charged; training stopped.")
        self._taken = taken
