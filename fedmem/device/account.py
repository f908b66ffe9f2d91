"""Keep a device's own account: what all federations that it ever answered cost it together (docs/privacy.md).

The account is computed from the egress ledger, which is sealed, chained and noted in the keystore. So it is stored
nowhere else, and an edited or shortened account is an edited or shortened ledger.

Invariants
- The figure is ε of the device against readers of released anchors, at the policy's δ, under zero-out
  (`fedmem.federation.composition`). Against a coordinator it is infinite.
- A plan is charged before an answer leaves. No answer is granted that would bring the account above the policy's limit.
- A plan that samples is charged with all rounds that the account grants it, when the device joins, before the first
  draw. Its ε per round averages over draws that nobody sees, so rounds in which this device was not drawn count too,
  and the charge must not follow from the draws. A plan that asks every device is charged with the answered rounds.
- Zeros that follow from public facts cost nothing: for no round of the plan, or for a round that was not granted.
- No clock, file or private record is read. The account is a function of plans, answers and limits alone (I1).

    | line of the ledger | charge |
    |---|---|
    | of a plan without noise, or without a spend | infinite |
    | of an earlier version, without `rounds` | each line a round; of a sampling plan all up to the last answered one |
    | lines that a restored backup is known to lack | infinite |

>>> account, plan = Account(FederationLimits()), DevicePlan(population=100, rounds=5, noise_multiplier=2.0)
>>> account.granted(plan), account.epsilon()
(5, 0.0)
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fedmem.errors import BoundaryViolation, BudgetExceeded, Refused
from fedmem.federation import composition, device_dp
from fedmem.federation.composition import ZERO_OUT, Spend
from fedmem.federation.device_dp import DevicePlan
from fedmem.policy.policy import FederationLimits
from fedmem.privacy.statement import LifetimeSpent
from fedmem.storage.canonical import canonical_json
from fedmem.vault.store.egress_entry import EgressEntry

if TYPE_CHECKING:
    from fedmem.vault.store.egress_log import EgressLog

Accountant = Callable[[Iterable[Spend], float], float]
JOINED = "join"
"""The message of an entry that charges a plan before any message of it has left; it has no bytes."""
UNLIMITED = FederationLimits(math.inf, 1e-5, allow_no_dp=True)
"""The limits of a simulated device, and of a test."""


@dataclass
class _Participation:
    """The lines of one plan.

    `spend` is that of one round, None without noise. `rounds` are those that lines with a charge name, `granted` the
    most that one of them grants. `lines` and `last` count lines of earlier versions, and their greatest round.
    """

    run: str
    spend: Spend | None
    rounds: set[int] = field(default_factory=set)
    granted: int = 0
    lines: int = 0
    last: int = 0
    answers: dict[int, set[str]] = field(default_factory=dict)

    def add(self, entry: EgressEntry) -> None:
        self.answers.setdefault(entry.number, set()).add(entry.digest)
        if entry.rounds is None:
            self.lines, self.last = self.lines + 1, max(self.last, entry.number)
        elif entry.rounds:
            self.rounds |= {entry.number} - {0}
            self.granted = max(self.granted, entry.rounds)

    def charged(self) -> int:
        if self.spend is not None and not composition.is_sampled(self.spend):
            return len(self.rounds) + self.lines
        return max(self.granted, self.lines, self.last)


class Account:
    """The account of one device.

    Args:
        limits: the limits of the device's policy.
        entries: the entries of its egress ledger, in any order.
        is_complete: False if the ledger is known to lack lines.

    Raises:
        VerificationFailed: this version does not know a spend.
    """

    def __init__(self, limits: FederationLimits, entries: Iterable[EgressEntry] = (), is_complete: bool = True) -> None:
        self._limits, self._is_complete = limits, is_complete
        self._plans: dict[tuple[str, bytes], _Participation] = {}
        self._granted: dict[str, int] = {}
        for entry in entries:
            self.add(entry)

    def add(self, entry: EgressEntry) -> None:
        """Add one entry of the egress ledger.

        Args:
            entry: the entry, of any plan.

        Raises:
            VerificationFailed: this version does not know its spend.
        """
        key = entry.plan, canonical_json(dict(entry.spend))
        if key not in self._plans:
            spend = composition.spend_from(entry.spend) if entry.spend else None
            self._plans[key] = _Participation(entry.run, spend)
        self._plans[key].add(entry)
        self._granted = {plan: rounds for plan, rounds in self._granted.items() if plan == entry.plan}

    def epsilon(self) -> float:
        """Return ε of all federations together at the policy's δ; infinite as the table of the module says."""
        spends = self._spends(but="")
        return math.inf if spends is None else composition.epsilon(spends, self._limits.delta)

    def spent(self) -> LifetimeSpent:
        """Return the figures of the account, for a report."""
        epsilon, limit = self.epsilon(), self._limits.epsilon
        federations = len({plan for (plan, _), lines in self._plans.items() if lines.charged()})
        return LifetimeSpent(epsilon, self._limits.delta, limit, max(0.0, limit - epsilon), federations, ZERO_OUT)

    def granted(self, plan: DevicePlan) -> int:
        """Return the number of the plan's rounds that the limits allow beside all other plans, from 0 to `plan.rounds`.

        Args:
            plan: the plan of a federation.

        Raises:
            Refused: the plan adds no noise and the policy does not allow that, or the name of its run belongs to
                another plan that was answered.
        """
        self._check(plan)
        digest = plan.digest()
        if digest not in self._granted:
            self._granted[digest] = plan.rounds if plan.unsafe_no_dp else self._most_rounds(plan)
        return self._granted[digest]

    def admit(self, plan: DevicePlan, number: int) -> None:
        """Return if an update may leave in round `number` of `plan`.

        Guarantees: after the answer of an admitted round is charged, `epsilon` is at most the limit, except for plans
        without noise that the policy allows.

        Args:
            plan: the plan of the federation.
            number: number of the round, from 1.

        Raises:
            BoundaryViolation: the plan has no such round.
            BudgetExceeded: the round would pass the limit, or the limit is already passed.
            Refused: as `granted`.
        """
        if not 1 <= number <= plan.rounds:
            raise BoundaryViolation(
                "The plan allows no such round, so only zeros may be sent for it; the update was not sent."
            )
        granted = self.granted(plan)
        is_new = number not in self._rounds(plan)
        if number > granted if plan.sampled else (is_new and self._charged(plan) >= granted):
            raise self._refusal()

    def admit_answer(self, plan: DevicePlan, number: int, digest: str) -> None:
        """Return if an update with this digest may leave in round `number`. The same answer may be repeated.

        Guarantees: in each round at most one distinct update leaves; otherwise as `admit`.

        Args:
            plan: the plan of the federation.
            number: number of the round, from 1.
            digest: digest of the update, hex.

        Raises:
            BoundaryViolation: this round got another answer, or the plan has no such round.
            BudgetExceeded, Refused: as `admit`.
        """
        self.admit(plan, number)
        digests = {one for lines in self._lines(plan) for one in lines.answers.get(number, ())}
        if digests and digest not in digests:
            raise BoundaryViolation("Another answer was given in this round; a second one was not sent.")

    def charge(self, plan: DevicePlan, number: int) -> int:
        """Return the rounds that an answer in round `number` is charged with: `EgressEntry.rounds`.

        Args:
            plan: the plan of the federation.
            number: number of the round; 0 for an answer to no round.

        Returns:
            0 if `admit` refuses the round, since only zeros may be sent for it.
        """
        try:
            self.admit(plan, number)
        except (BoundaryViolation, BudgetExceeded, Refused):
            return 0
        return self.granted(plan) if plan.sampled else 1

    def check_joining(self, plan: DevicePlan) -> None:
        """Return if the device may join a federation with this plan: at least one more round of it is granted.

        Args:
            plan: the plan of the federation.

        Raises:
            Refused: as `granted`.
            BudgetExceeded: no further round is granted.
        """
        granted, charged = self.granted(plan), self._charged(plan)
        is_spent = granted == 0 if plan.sampled else charged >= granted
        if is_spent and len(self._rounds(plan)) < plan.rounds:
            raise self._refusal()

    def joining_entry(self, plan: DevicePlan) -> EgressEntry | None:
        """Return the entry that charges a sampling plan when the device joins; None if there is nothing to charge.

        Args:
            plan: the plan of the federation.

        Raises:
            Refused: as `granted`.
        """
        granted = self.granted(plan)
        if not plan.sampled or self._charged(plan) >= granted:
            return None
        return EgressEntry(JOINED, 0, 0, "", rounds=granted, **entry_facts(plan))

    def _check(self, plan: DevicePlan) -> None:
        if plan.unsafe_no_dp and not self._limits.allow_no_dp:
            raise Refused(
                "The plan adds no noise, and this device's policy does not allow that. To join all the same, set "
                "allow_no_dp = true in [federation] of a policy of your own."
            )
        digest = plan.digest()
        if plan.run and any(lines.run == plan.run and other != digest for (other, _), lines in self._plans.items()):
            raise Refused(
                "This device has answered a federation of the same name under another plan. Ask its coordinator for a "
                "new name of the run."
            )

    def _most_rounds(self, plan: DevicePlan) -> int:
        """Return the greatest number of rounds that keeps ε at or below the limit."""
        others = self._spends(but=plan.digest())
        if others is None or not self._fits(others, composition.epsilon):
            return 0

        def fits(rounds: int, accountant: Accountant) -> bool:
            return self._fits([*others, device_dp.spend(plan, rounds)], accountant)

        # The bound takes no time and is close, so the exact figure is asked for near its answer only.
        fitting = _greatest(0, plan.rounds, lambda rounds: fits(rounds, composition.epsilon_bound))
        step = 1 + fitting // 16
        while fitting < plan.rounds and fits(min(fitting + step, plan.rounds), composition.epsilon):
            fitting, step = min(fitting + step, plan.rounds), 2 * step
        beyond = min(fitting + step, plan.rounds)
        return _greatest(fitting, beyond, lambda rounds: fits(rounds, composition.epsilon))

    def _fits(self, spends: list[Spend], accountant: Accountant) -> bool:
        return accountant(spends, self._limits.delta) <= self._limits.epsilon

    def _spends(self, but: str) -> list[Spend] | None:
        """Return what all plans but one are charged with; None if it is infinite.

        Where the policy allows plans without noise, they do not stand in the way of one with noise (`but` is not "").
        """
        if not self._is_complete:
            return None
        spends = list[Spend]()
        for (plan, _), lines in self._plans.items():
            if (plan == but and but) or not lines.charged():
                continue
            if lines.spend is not None:
                spends.append(replace(lines.spend, steps=lines.spend.steps * lines.charged()))
            elif not (but and self._limits.allow_no_dp):
                return None
        return spends

    def _refusal(self) -> BudgetExceeded:
        return BudgetExceeded(_SPENT if self._is_complete else _INCOMPLETE)

    def _charged(self, plan: DevicePlan) -> int:
        return sum(lines.charged() for lines in self._lines(plan))

    def _lines(self, plan: DevicePlan) -> list[_Participation]:
        digest = plan.digest()
        return [lines for (other, _), lines in self._plans.items() if other == digest]

    def _rounds(self, plan: DevicePlan) -> set[int]:
        """Return the rounds of the plan that were answered and charged; those of earlier versions included."""
        rounds = set[int]()
        for lines in self._lines(plan):
            rounds |= lines.rounds | (set(lines.answers) if lines.lines else set())
        return rounds


def entry_facts(plan: DevicePlan) -> dict[str, Any]:
    """Return the fields of an egress entry that follow from the plan: run, plan, spend and δ.

    Args:
        plan: the plan of a federation.
    """
    # A plan that claims no ε has no event to compute one from.
    spend = {} if plan.unsafe_no_dp else device_dp.spend(plan, rounds=1).to_dict()
    return {"run": plan.run, "plan": plan.digest(), "spend": spend, "delta": plan.delta}


def _greatest(fitting: int, last: int, fits: Callable[[int], bool]) -> int:
    """Return the greatest number from `fitting`, which fits, to `last` that fits. What is below a fit fits."""
    if fits(last):
        return last
    while last - fitting > 1:
        middle = (fitting + last) // 2
        fitting, last = (middle, last) if fits(middle) else (fitting, middle)
    return fitting


def account_of(ledger: "EgressLog", limits: FederationLimits) -> Account:
    """Return the account of an egress ledger.

    Args:
        ledger: the egress ledger of the device.
        limits: the limits of its policy.

    Raises:
        VerificationFailed: the ledger was edited or shortened, or this version does not know a spend.
    """
    return Account(limits, [line.entry for line in ledger.entries()], ledger.complete())


_INCOMPLETE = (
    "This vault was restored from a backup, and messages left the device after that backup. So its account over all "
    "federations is not bounded, and it answers no further round; nothing was computed or sent."
)
_SPENT = (
    "This round would pass the privacy budget that the device's policy sets for all federations together; nothing was "
    "computed or sent. `fedmem client egress` shows the account."
)
