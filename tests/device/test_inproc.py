"""The port within one process: copies of public values, and the same gate as the vault process."""

import numpy as np
import pytest

from fedmem.device.account import Account
from fedmem.device.inproc import InprocPort
from fedmem.errors import BoundaryViolation, BudgetExceeded, Refused
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.wire import Fields
from fedmem.policy.policy import FederationLimits

PLAN = DevicePlan(population=100, rounds=9, noise_multiplier=4.0)
SHAPES = {"w": (1,)}


def update(cell: int) -> Fields:
    return Fields({"w": np.array([cell], np.int32)})


def test_the_records_are_a_copy_of_what_was_given() -> None:
    records = ["one", "two"]
    port = InprocPort(records, PLAN, SHAPES)
    records[0] = "another"
    assert port.shareable() == ("one", "two")


def test_the_limits_of_the_account_hold() -> None:
    account = Account(FederationLimits(epsilon=0.01))
    port = InprocPort([], PLAN, SHAPES, account)
    with pytest.raises(BudgetExceeded):
        port.admit(1)
    with pytest.raises(BudgetExceeded):
        port.approve(update(1), 1)
    assert port.egress == []
    port.approve(update(0), 1)  # zeros may leave always
    assert [entry.rounds for entry in port.egress] == [0]


def test_a_plan_without_noise_needs_the_policy() -> None:
    unsafe = DevicePlan(population=4, rounds=9, unsafe_no_dp=True, unsafe_reason="a toy")
    with pytest.raises(Refused):
        InprocPort([], unsafe, SHAPES, Account(FederationLimits())).admit(1)


def test_without_an_account_every_round_of_the_plan_is_admitted() -> None:
    port = InprocPort([], PLAN, SHAPES)
    for number in range(1, PLAN.rounds + 1):
        port.admit(number)
    for number in (0, PLAN.rounds + 1):
        with pytest.raises(BoundaryViolation):
            port.admit(number)
