"""What was spent, composed on demand: pure rules over the events of a vault's append-only ledger.

Invariants
- Epsilon is computed from spends and never stored; failed, resumed, erased and rolled-back runs all count.
- A record's figure composes every run that it was ever in; the subject's is the greatest of its records'.
- A run whose lineage is lost counts for every record; where all are lost, everything composes.
- A training step that the durable charge does not cover is refused before it is taken (I6).
- Nothing here reads a clock: the order of events is their order in the ledger.

A spend's lineage is the list of the random ids of its records, sealed in the event; ids of erased records stay.
`delta` is 1e-5 where none is given (docs/design.md, §7).

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
"""What composes spends at a delta: `epsilon_pld`, or `epsilon_rdp`, which is never below it."""


class LedgerEvent(Protocol):
    """An event of a vault's ledger, as far as these rules read it."""

    @property
    def kind(self) -> str: ...

    @property
    def payload(self) -> Mapping[str, Any]: ...


Events = Iterable[LedgerEvent]


@dataclass(frozen=True)
class Charge:
    """One training run's spend, by random ids; `records` is None where the lineage is lost, `release` is a digest."""

    run: str
    block: str
    spend: SpendEvent
    records: frozenset[str] | None
    release: str = ""

    def may_hold(self, record: str) -> bool:
        """Whether the record was, or for lack of lineage may have been, in this run."""
        return self.records is None or record in self.records


def charges(events: Events) -> list[Charge]:
    """The spends of a ledger, in order. Raises VerificationFailed for one that cannot be read."""
    return [_charge(event.payload) for event in events if event.kind == SPEND]


def _charge(payload: Mapping[str, Any]) -> Charge:
    try:
        records = payload.get("records")
        lineage = None if records is None else frozenset(map(str, records)) or None  # no name: lost
        spend, release = SpendEvent.from_dict(payload["spend"]), str(payload.get("release", ""))
        return Charge(str(payload["run"]), str(payload["block"]), spend, lineage, release)
    except (KeyError, TypeError, AttributeError) as error:
        raise VerificationFailed("The ledger holds a spend without its run; it was edited or damaged.") from error


def states(events: Events) -> dict[str, State]:
    """Run id -> how it stands, in the order of the charges.

    Erased where an erasure took the run or its block; lost for a charge that stands for what a restored backup lacks.
    Raises VerificationFailed for a history that cannot be: a run that is charged twice, ends twice or without a
    charge, or ends in another block.
    """
    found, blocks, gone = dict[str, State](), dict[str, str](), set[str]()
    for event in events:
        run = str(event.payload.get("run"))
        if event.kind == SPEND:
            _require(run not in found)
            charge = _charge(event.payload)
            found[run] = "open" if charge.release or charge.records is not None else "lost"
            blocks[run] = charge.block
        elif event.kind in ENDED:
            finished = event.kind == ENDED[0]
            _require(found.get(run) == "open" and (not finished or event.payload.get("block") == blocks[run]))
            found[run] = "finished" if finished else "failed"
        elif event.kind == ERASED:
            gone |= set(event.payload.get("ids", ()))
    return {run: "erased" if {run, blocks[run]} & gone else state for run, state in found.items()}


def _require(consistent: bool) -> None:
    if not consistent:
        raise VerificationFailed("The ledger contradicts itself about a run; restore the vault from a backup.")


def block_epsilon(events: Events, block: str, delta: float = DELTA) -> float:
    """Epsilon of one block version alone, by its id or its run's; 0 where the ledger names no such block."""
    return _composed(charges(events), delta, lambda charge: block in (charge.block, charge.run))


def record_epsilon(events: Events, record: str, delta: float = DELTA) -> float:
    """Epsilon of one record over every run that it was, or may have been, in."""
    return _composed(charges(events), delta, lambda charge: charge.may_hold(record))


def subject_epsilon(events: Events, delta: float = DELTA, accountant: Accountant = epsilon_pld) -> float:
    """Greatest epsilon of any record of the subject, present or erased.

    Guarantees: an upper bound for every record, as composition is over all runs that name it and all that
    name none. 0 for an empty ledger, infinite where a run had no noise.
    """
    ledger = charges(events)
    return _greatest(ledger, delta, {record for charge in ledger for record in charge.records or ()}, accountant)


def greatest_epsilon(
    events: Events, records: Collection[str], delta: float = DELTA, accountant: Accountant = epsilon_pld
) -> float:
    """Greatest epsilon of any of `records`: what `check_budget` compares with a topic's budget."""
    return _greatest(charges(events), delta, records, accountant)


def check_budget(events: Events, new: SpendEvent, records: Collection[str], *, budget: float, delta: float) -> None:
    """Refuse a run on `records` that would bring one of them above epsilon `budget`. Raises BudgetExceeded.

    A budget that is NaN refuses everything; so does an infinite epsilon against a finite budget.
    """
    ledger = [*charges(events), Charge("", "", new, frozenset(records))]
    if not _greatest(ledger, delta, records) <= budget:
        raise BudgetExceeded("This run would pass the topic's privacy budget; nothing was trained or charged.")


def is_open(events: Events, release: str, records: Sequence[str], spend: Mapping[str, Any]) -> bool:
    """Whether a charged run on exactly these records, release and spend has not ended: resuming it costs nothing."""
    started, ended = list[Mapping[str, Any]](), set[Any]()
    for event in events:
        if event.kind == SPEND:
            started.append(event.payload)
        elif event.kind in ENDED:
            ended.add(event.payload.get("run"))
    wanted = (release, [*records], dict(spend))
    return any(
        (payload.get("release"), payload.get("records"), payload.get("spend")) == wanted
        for payload in started
        if payload.get("run") not in ended
    )


def _composed(ledger: Iterable[Charge], delta: float, counts: Callable[[Charge], bool]) -> float:
    return epsilon_pld([charge.spend for charge in ledger if counts(charge)], delta)


def _greatest(
    ledger: Sequence[Charge], delta: float, records: Collection[str], accountant: Accountant = epsilon_pld
) -> float:
    """Greatest epsilon over records; histories are compared first, so that few are composed."""
    lost = frozenset(i for i, charge in enumerate(ledger) if charge.records is None)
    histories = {frozenset(i for i, charge in enumerate(ledger) if charge.may_hold(r)) for r in records} | {lost}
    longest = [runs for runs in histories if not any(runs < other for other in histories)]
    return max(accountant([ledger[i].spend for i in runs], delta) for runs in longest)


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
