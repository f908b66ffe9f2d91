"""A device's account: what it composes, what it grants, and what a gate in front of it lets out."""

import math
import random

import numpy as np
import pytest

from fedmem.device import account as module
from fedmem.device.account import UNLIMITED, Account
from fedmem.device.gate import Gate
from fedmem.errors import BudgetExceeded, Refused, VerificationFailed
from fedmem.federation import composition, device_dp
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.terms import Terms
from fedmem.federation.wire import Fields
from fedmem.policy.policy import FederationLimits
from fedmem.vault.store.egress_entry import EgressEntry

SHAPES = {"w": (3,)}
LIMITS = FederationLimits()
EVERYONE = DevicePlan(population=100, rounds=9, noise_multiplier=4.0, run="everyone")
SAMPLED = DevicePlan(population=1000, sampling_rate=0.3, rounds=9, noise_multiplier=1.0, run="sampled")
FIXED = DevicePlan(population=1000, cohort_size=100, rounds=9, noise_multiplier=4.0, run="fixed")
UNSAFE = DevicePlan(population=4, rounds=9, unsafe_no_dp=True, unsafe_reason="a toy", run="unsafe")


def fields(cell: int = 0) -> Fields:
    return Fields({"w": np.array([cell, 0, 0], np.int32)})


def answered(plan: DevicePlan, *numbers: int, account: Account | None = None) -> tuple[list[EgressEntry], Account]:
    """The lines of a gate after an update in each of these rounds."""
    lines, account = list[EgressEntry](), account or Account(UNLIMITED)
    gate = Gate(Terms(plan, SHAPES), lines.append, account)
    for number in numbers:
        gate.release(fields(number), number)
    return lines, account


def of_before(plan: DevicePlan, *numbers: int) -> list[EgressEntry]:
    """Lines as earlier versions wrote them: no word of the rounds that are charged."""
    spend = {} if plan.unsafe_no_dp else device_dp.spend(plan, 1).to_dict()
    return [
        EgressEntry("train.anchor", n, 12, f"{n:064x}", plan.run, plan.digest(), spend, plan.delta) for n in numbers
    ]


class TestFigure:
    def test_an_account_without_a_line_is_zero(self) -> None:
        assert Account(LIMITS).epsilon() == 0.0
        assert Account(LIMITS).spent().left == 10.0

    def test_one_federation_costs_what_its_own_report_says(self) -> None:
        for plan in (EVERYONE, SAMPLED, FIXED):
            lines, _ = answered(plan, *range(1, 10))
            assert Account(LIMITS, lines).epsilon() == pytest.approx(device_dp.figures(plan, 9).readers, rel=1e-12)

    def test_a_plan_that_asks_all_pays_by_round_and_one_that_samples_pays_whole(self) -> None:
        by_round, _ = answered(EVERYONE, 2, 7)
        assert Account(LIMITS, by_round).epsilon() == pytest.approx(device_dp.figures(EVERYONE, 2).readers)
        whole, _ = answered(SAMPLED, 2)
        assert Account(LIMITS, whole).epsilon() == pytest.approx(device_dp.figures(SAMPLED, 9).readers)

    def test_all_plans_compose_in_any_order(self) -> None:
        lines = [line for plan in (EVERYONE, SAMPLED) for line in answered(plan, *range(1, 10))[0]]
        spends = [device_dp.spend(plan, 9) for plan in (EVERYONE, SAMPLED)]
        expected = composition.epsilon(spends, 1e-5)
        for order in (lines, lines[::-1]):
            assert Account(LIMITS, order).epsilon() == pytest.approx(expected)
        alone = [device_dp.figures(plan, 9).readers for plan in (EVERYONE, SAMPLED)]
        assert max(alone) < expected < sum(alone)

    def test_a_plan_without_noise_is_infinite_and_an_unknown_spend_is_not_guessed(self) -> None:
        assert math.isinf(Account(LIMITS, answered(UNSAFE, 1)[0]).epsilon())
        assert math.isinf(Account(LIMITS, [EgressEntry("train.anchor", 1, 12, "00")]).epsilon())
        for spend in ({"mechanism": "later/9"}, {"mechanism": "fixed-gaussian/1", "cohort": 3}):
            with pytest.raises(VerificationFailed):
                Account(LIMITS, [EgressEntry("train.anchor", 1, 12, "00", spend=spend, delta=1e-5)])

    def test_lines_that_a_backup_lacks_are_infinite(self) -> None:
        account = Account(LIMITS, answered(EVERYONE, 1)[0], is_complete=False)
        assert math.isinf(account.epsilon())
        with pytest.raises(BudgetExceeded, match="restored"):
            account.admit(EVERYONE, 2)

    def test_lines_of_before_count_as_rounds(self) -> None:
        assert Account(LIMITS, of_before(EVERYONE, 3, 7)).epsilon() == pytest.approx(
            device_dp.figures(EVERYONE, 2).readers
        )
        assert Account(LIMITS, of_before(SAMPLED, 3, 7)).epsilon() == pytest.approx(
            device_dp.figures(SAMPLED, 7).readers
        )
        assert math.isinf(Account(LIMITS, of_before(UNSAFE, 1)).epsilon())

    def test_zeros_that_follow_from_public_facts_cost_nothing(self) -> None:
        lines, account = list[EgressEntry](), Account(LIMITS)
        gate = Gate(Terms(SAMPLED, SHAPES), lines.append, account)
        for number in (0, 10, 999_999):
            gate.release(fields(), number)
        assert ([line.rounds for line in lines], account.epsilon()) == ([0, 0, 0], 0.0)
        gate.release(fields(), 4)  # the zeros of an empty or failing device may tell of its data
        assert lines[-1].rounds == 9
        assert account.epsilon() > 0


class TestLimit:
    def test_the_last_round_that_fits_is_the_last_one(self) -> None:
        plan = DevicePlan(population=100, rounds=40, noise_multiplier=2.0)
        fitting = max(n for n in range(41) if device_dp.figures(plan, n).readers <= 10.0)
        assert 0 < fitting < 40
        account = Account(LIMITS)
        assert account.granted(plan) == fitting
        answered(plan, *range(1, fitting + 1), account=account)
        assert account.epsilon() == pytest.approx(device_dp.figures(plan, fitting).readers)
        with pytest.raises(BudgetExceeded):
            account.admit(plan, fitting + 1)
        account.admit(plan, fitting)  # a round that was answered may be asked again

    def test_a_sampling_plan_is_granted_its_first_rounds(self) -> None:
        plan = DevicePlan(population=1000, sampling_rate=0.3, rounds=60, noise_multiplier=0.8)
        account = Account(LIMITS)
        granted = account.granted(plan)
        assert device_dp.figures(plan, granted).readers <= 10.0 < device_dp.figures(plan, granted + 1).readers
        with pytest.raises(BudgetExceeded):
            answered(plan, granted + 1, account=account)
        lines, _ = answered(plan, 3, account=account)
        assert lines[0].rounds == granted

    def test_a_sampling_plan_is_charged_before_the_first_draw_and_once(self) -> None:
        account = Account(LIMITS)
        entry = account.joining_entry(SAMPLED)
        assert entry is not None
        assert (entry.message, entry.number, entry.nbytes, entry.rounds) == ("join", 0, 0, 9)
        account.add(entry)
        charged = account.epsilon()
        assert charged == pytest.approx(device_dp.figures(SAMPLED, 9).readers)
        assert account.joining_entry(SAMPLED) is None
        answered(SAMPLED, 1, 5, account=account)
        assert account.epsilon() == charged
        assert Account(LIMITS).joining_entry(EVERYONE) is None

    def test_a_second_federation_is_refused_where_both_would_pass(self) -> None:
        first = DevicePlan(population=100, rounds=9, noise_multiplier=2.0, run="1")
        second = DevicePlan(population=100, rounds=9, noise_multiplier=2.0, run="2")
        lines, _ = answered(first, *range(1, 10))
        assert Account(LIMITS).granted(second) == 9
        account = Account(LIMITS, lines)
        assert 0 < account.granted(second) < 9
        tight = Account(FederationLimits(epsilon=account.epsilon() + 0.01), lines)
        assert tight.granted(second) == 0
        with pytest.raises(BudgetExceeded):
            tight.check_joining(second)
        with pytest.raises(BudgetExceeded):
            answered(second, 1, account=tight)
        tight.check_joining(first)  # all its rounds are answered: it costs nothing more

    def test_a_stricter_policy_counts_from_now_on(self) -> None:
        lines, _ = answered(EVERYONE, 1, 2, 3)
        strict = Account(FederationLimits(epsilon=0.5), lines)
        assert strict.spent().left == 0.0
        with pytest.raises(BudgetExceeded):
            strict.check_joining(EVERYONE)
        with pytest.raises(BudgetExceeded):
            strict.admit(EVERYONE, 4)

    def test_no_series_of_answers_passes_the_limit(self) -> None:
        draw = random.Random(5)
        for _ in range(3):
            account = Account(LIMITS)
            plans = [
                DevicePlan(population=1000, rounds=draw.randint(1, 30), noise_multiplier=draw.uniform(1, 4),
                           run=str(run), **draw.choice([{}, {"sampling_rate": 0.2}, {"cohort_size": 50}]))
                for run in range(3)
            ]  # fmt: skip
            refused = 0
            for plan, number in draw.sample([(p, n) for p in plans for n in range(1, p.rounds + 1)], k=15):
                try:
                    answered(plan, number, account=account)
                except BudgetExceeded:
                    refused += 1
            assert account.epsilon() <= 10.0
            assert refused < 15

    def test_a_plan_without_noise_needs_the_consent_of_the_policy(self) -> None:
        with pytest.raises(Refused, match="allow_no_dp"):
            Account(LIMITS).check_joining(UNSAFE)
        consenting = Account(FederationLimits(allow_no_dp=True))
        lines, _ = answered(UNSAFE, *range(1, 10), account=consenting)
        assert math.isinf(consenting.epsilon())
        assert consenting.granted(EVERYONE) == 9  # the budget goes on for plans with noise
        withdrawn = Account(LIMITS, lines)
        with pytest.raises(BudgetExceeded):
            withdrawn.check_joining(EVERYONE)

    def test_the_name_of_a_run_belongs_to_one_plan(self) -> None:
        account = Account(LIMITS, answered(EVERYONE, 1)[0])
        other = DevicePlan(population=100, rounds=10, noise_multiplier=4.0, run="everyone")
        with pytest.raises(Refused, match="same name"):
            account.check_joining(other)
        account.check_joining(DevicePlan(population=100, rounds=10, noise_multiplier=4.0, run="another"))

    def test_it_asks_the_accountant_once_for_a_plan(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _, account = answered(EVERYONE, 1, account=Account(LIMITS))
        monkeypatch.setattr(module.composition, "epsilon", None)
        monkeypatch.setattr(module.composition, "epsilon_bound", None)
        answered(EVERYONE, *range(2, 10), account=account)
