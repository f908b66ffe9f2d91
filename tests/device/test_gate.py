"""The gate: what leaves, in which round, and only after its line is durable."""

import numpy as np
import pytest

from fedmem.device.account import UNLIMITED, Account
from fedmem.device.gate import Gate
from fedmem.device.inproc import InprocPort
from fedmem.errors import BoundaryViolation, StorageError
from fedmem.federation import device_dp, wire
from fedmem.federation.device import Device, TrainConfig
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.terms import Terms
from fedmem.federation.wire import Fields
from fedmem.policy.policy import FederationLimits
from fedmem.vault.store.egress_entry import EgressEntry

SHAPES = {"w": (3,)}
LIMITS = FederationLimits()
EVERYONE = DevicePlan(population=100, rounds=9, noise_multiplier=4.0, run="everyone")


def fields(cell: int = 0) -> Fields:
    return Fields({"w": np.array([cell, 0, 0], np.int32)})


def answered(plan: DevicePlan, *numbers: int, account: Account | None = None) -> tuple[list[EgressEntry], Account]:
    """The lines of a gate after an update in each of these rounds."""
    lines, account = list[EgressEntry](), account or Account(UNLIMITED)
    gate = Gate(Terms(plan, SHAPES), lines.append, account)
    for number in numbers:
        gate.release(fields(number), number)
    return lines, account


class TestGate:
    def test_a_second_answer_in_a_round_is_refused_and_the_same_one_is_not(self) -> None:
        lines, account = answered(EVERYONE, 1, 1)
        assert [line.number for line in lines] == [1, 1]
        gate = Gate(Terms(EVERYONE, SHAPES), lines.append, Account(LIMITS, lines))  # after a restart too
        with pytest.raises(BoundaryViolation, match="Another answer"):
            gate.release(fields(2), 1)
        gate.release(fields(1), 1)
        gate.release(fields(0), 1)  # zeros, the look of a refusal
        assert account.epsilon() == pytest.approx(device_dp.figures(EVERYONE, 1).readers)
        assert Account(LIMITS, lines).epsilon() == account.epsilon()

    def test_an_answer_to_no_round_is_zeros(self) -> None:
        for number in (0, 10, 999_999):
            gate = Gate(Terms(EVERYONE, SHAPES), list[EgressEntry]().append)
            with pytest.raises(BoundaryViolation):
                gate.release(fields(1), number)

    def test_a_round_that_is_not_granted_trains_nothing_and_answers_zeros(self) -> None:
        trained = list[int]()

        def train(params: wire.Params, config: TrainConfig) -> wire.Params:
            trained.append(config.round)
            return {name: value + 0.5 for name, value in params.items()}

        plan = DevicePlan(population=100, rounds=40, noise_multiplier=2.0)
        account = Account(LIMITS)
        granted = account.granted(plan)
        answered(plan, *range(1, granted), account=account)
        port = InprocPort(["a text"], plan, SHAPES, account)
        device = Device(0, port, plan, SHAPES, train)
        params = {"w": np.zeros(3, np.float32)}
        sent = []
        for number in (granted, granted + 1, 40, 41):
            scalars = {"protocol": wire.PROTOCOL, "round": number, "seed": 1, "steps": 1, "batch": 1,
                       "learning_rate": 0.1, "memory_learning_rate": 0.1, "plan": plan.digest()}  # fmt: skip
            request = Fields({name: wire.pack(params)[name] for name in params}, scalars)
            sent.append(bool(device.answer(request).arrays["w"].any()))
        assert (sent, trained) == ([True, False, False, False], [granted])
        assert [entry.rounds for entry in port.egress] == [1, 0, 0, 0]


def test_it_enters_before_it_returns_and_returns_nothing_else() -> None:
    def full(entry: EgressEntry) -> None:
        raise StorageError("The disk is full.")

    with pytest.raises(StorageError):
        Gate(Terms(EVERYONE, SHAPES), full).release(fields(1), 1)
