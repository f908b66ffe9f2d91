"""A device's answer is clipped, has one shape, and says nothing of an error."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmem.errors import BoundaryViolation, Refused
from fedmem.federation import fixedpoint, wire
from fedmem.federation.device import Device, TrainConfig, device_seed, encode_update
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.port import NoApproval
from fedmem.federation.rounds import Coordinator, RoundSettings
from fedmem.federation.wire import Fields

Make = Callable[..., Any]


def test_a_huge_update_is_clipped_on_the_device(toy: Make) -> None:
    def huge(texts: Sequence[str]) -> Callable[..., wire.Params]:
        return lambda params, config: {name: value + np.float32(1e30) for name, value in params.items()}

    made = toy(train=huge)
    _, coordinator, _ = made.run(until=1)
    moved = [coordinator.params[n].astype(np.float64) - p for n, p in toy().coordinator().params.items()]
    assert np.sqrt(sum(np.square(part).sum() for part in moved)) == pytest.approx(1.0, rel=1e-3)


PLAN = DevicePlan(population=1, unsafe_no_dp=True, unsafe_reason="a test", clip=2.0)
SHAPES = {"w": (2, 3), "b": (3,)}


class Notes:
    """A port that notes what it approves."""

    def __init__(self, refusals: int = 0) -> None:
        self.approved: list[tuple[Fields, int]] = []
        self.refusals = refusals

    def shareable(self) -> list[str]:
        return []

    def admit(self, number: int) -> None:
        pass

    def approve(self, fields: Fields, number: int) -> Fields:
        if self.refusals:
            self.refusals -= 1
            raise BoundaryViolation("The schema does not allow it.")
        self.approved.append((fields, number))
        return fields


def request(**scalars: Any) -> Fields:
    params = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    coordinator = Coordinator(params, PLAN, None, RoundSettings(seed=11, steps=4, batch=2, learning_rate=0.5))
    fields = coordinator.open([1000]).request
    return Fields(fields.arrays, {**fields.scalars, **scalars})


def test_training_gets_the_settings_of_the_request_and_a_seed_of_its_own() -> None:
    configs = []

    def train(params: wire.Params, config: TrainConfig) -> wire.Params:
        configs.append(config)
        return params

    for index in (0, 1):
        Device(index, Notes(), PLAN, SHAPES, train).answer(request())
    first, second = configs
    assert first == TrainConfig(1, device_seed(11, 0, 1), 4, 2, 0.5, 0.0)
    assert second.seed == device_seed(11, 1, 1) != first.seed


def test_seeds_differ_between_devices_and_rounds_and_fit_63_bits() -> None:
    seeds = {device_seed(seed, device, number) for seed in (0, 1) for device in range(9) for number in range(9)}
    assert len(seeds) == 2 * 9 * 9
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_training_cannot_change_the_parameters_that_its_update_is_counted_from() -> None:
    def in_place(params: wire.Params, config: TrainConfig) -> wire.Params:
        for value in params.values():
            value += 0.25
        return params

    port = Notes()
    Device(0, port, PLAN, SHAPES, in_place).answer(request())
    update = fixedpoint.decode(port.approved[0][0].arrays["b"].astype(np.int64), fixedpoint.grid_step(PLAN.clip))
    np.testing.assert_allclose(update, 0.25, atol=1e-5)


FAILURES = {
    "an exception": lambda params, config: params["her diagnosis"],
    "a NaN": lambda params, config: {name: value * np.nan for name, value in params.items()},
    "another shape": lambda params, config: {name: value[:1] for name, value in params.items()},
    "a missing parameter": lambda params, config: {"w": params["w"]},
    "another parameter": lambda params, config: {**params, "loss": np.ones(1, np.float32)},
}


@pytest.mark.parametrize("train", FAILURES.values(), ids=FAILURES.keys())
def test_a_failed_training_is_answered_with_zeros_and_its_text_stays(train: Any, caplog: Any) -> None:
    port, errors = Notes(), list[Exception]()
    reply = Device(0, port, PLAN, SHAPES, train, failed=errors.append).answer(request())
    assert {name: array.shape for name, array in reply.arrays.items()} == SHAPES
    assert not any(array.any() for array in reply.arrays.values())
    assert [number for _, number in port.approved] == [1]
    assert len(errors) == 1
    assert "diagnosis" not in caplog.text


def test_a_request_of_another_plan_starts_no_training() -> None:
    def train(params: wire.Params, config: TrainConfig) -> wire.Params:
        raise AssertionError

    port, errors = Notes(), list[Exception]()
    Device(0, port, PLAN, SHAPES, train, failed=errors.append).answer(request(plan="0" * 64))
    assert [type(error) for error in errors] == [Refused]
    assert [number for _, number in port.approved] == [0]


def test_an_update_that_is_not_approved_is_replaced_by_approved_zeros() -> None:
    port = Notes(refusals=1)
    reply = Device(0, port, PLAN, SHAPES, lambda params, config: params).answer(request())
    assert port.approved == [(reply, 1)]


def test_where_zeros_are_not_approved_either_the_process_ends() -> None:
    with pytest.raises(NoApproval) as ended:
        Device(0, Notes(refusals=2), PLAN, SHAPES, lambda params, config: params).answer(request())
    assert isinstance(ended.value.reason, BoundaryViolation)


@given(st.lists(st.floats(-(2.0**90), 2.0**90, width=32), min_size=1, max_size=8), st.sampled_from([0.01, 1.0, 50.0]))
def test_no_update_is_longer_than_the_clip_norm_and_none_points_elsewhere(values: list[float], clip: float) -> None:
    after = {"w": np.array(values, np.float32)}
    cells = encode_update({"w": np.zeros_like(after["w"])}, after, clip)["w"]
    update = fixedpoint.decode(cells.astype(np.int64), fixedpoint.grid_step(clip))
    assert np.sqrt(np.square(update).sum()) <= clip
    assert (cells.astype(np.float64) * after["w"] >= 0).all()
