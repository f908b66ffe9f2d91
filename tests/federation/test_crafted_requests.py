"""Crafted requests by the thousand: a handler never raises, and every failure looks like every other."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedmem.device.inproc import InprocPort
from fedmem.errors import Busy
from fedmem.federation import wire
from fedmem.federation.client_app import answer_request
from fedmem.federation.device import Device
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.flower import Context, RecordDict
from fedmem.federation.flower_codec import to_request
from fedmem.federation.rounds import Coordinator, RoundSettings
from fedmem.federation.transcript import serialise_content
from fedmem.federation.wire import Fields
from tests.federation.crafted import crafted_request

SHAPES = {"b": (3,), "w": (4, 3)}
PLAN = DevicePlan(population=1, unsafe_no_dp=True, unsafe_reason="a test")
CONTEXT = Context(1, 1000, {"partition-id": 0}, RecordDict(), {})


class Locked(InprocPort):
    """A port of a vault that admits no round."""

    def admit(self, number: int) -> None:
        raise Busy("The vault of a patient is locked.")


def moved(params: wire.Params, config: Any) -> wire.Params:
    return {name: value + 0.1 for name, value in params.items()}


def broken(params: wire.Params, config: Any) -> wire.Params:
    raise RuntimeError("a diagnosis")


def device(train: Any, port: type[InprocPort] = InprocPort) -> Callable[[Context], Device]:
    return lambda context: Device(0, port([], PLAN, SHAPES), PLAN, SHAPES, train)


def unbuilt(context: Context) -> Device:
    raise RuntimeError("a diagnosis")


DEVICES = {
    "healthy": device(moved),
    "broken": device(broken),
    "refuses": device(moved, Locked),
    "has nothing": device(lambda params, config: params),
    "is not built": unbuilt,
}


def honest_request() -> Fields:
    params = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    settings = RoundSettings(seed=11, steps=4, batch=2, learning_rate=0.5)
    return Coordinator(params, PLAN, None, settings).open([1000]).request


def answers(content: Callable[[], RecordDict]) -> dict[str, bytes]:
    return {name: serialise_content(answer_request(made, content(), CONTEXT, SHAPES)) for name, made in DEVICES.items()}


@pytest.mark.parametrize(
    ("seed", "count"), [(3, 500), pytest.param(4, 10_000, marks=pytest.mark.slow)], ids=["500", "10000"]
)
def test_no_crafted_request_makes_a_handler_raise_or_tells_devices_apart(seed: int, count: int) -> None:
    honest = honest_request()
    zeros = answers(lambda: RecordDict({}))["healthy"]
    for number in range(count):
        replies = answers(lambda n=number: crafted_request(random.Random(f"{seed}/{n}"), honest))  # type: ignore[misc]
        assert set(replies.values()) == {zeros}, number


def test_an_honest_request_moves_the_healthy_device_alone() -> None:
    replies = answers(lambda: to_request(honest_request()))
    assert len(set(replies.values())) == 2
    assert len({reply for name, reply in replies.items() if name != "healthy"}) == 1
    assert len({len(reply) for reply in replies.values()}) == 1


def test_a_device_without_a_release_at_hand_answers_any_request() -> None:
    honest = honest_request()
    for number in range(300):
        content = crafted_request(random.Random(number), honest)
        assert list(answer_request(unbuilt, content, CONTEXT)) == ["update"]


def test_a_crafted_request_reaches_the_device_and_is_entered() -> None:
    """Zeros need the approval of the vault process, also where the request could not be read."""
    honest = honest_request()
    for number in range(100):
        port = InprocPort([], PLAN, SHAPES)
        made = Device(0, port, PLAN, SHAPES, moved)
        answer_request(lambda context, made=made: made, crafted_request(random.Random(number), honest), CONTEXT)
        assert len(port.egress) == 1, number
