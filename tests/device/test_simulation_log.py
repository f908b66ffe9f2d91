"""The notes of simulated devices: complete, in order, and without the text of an error."""

import numpy as np
import pytest

from fedmem.device.inproc import InprocPort
from fedmem.device.simulation_log import SimulationLog
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.wire import Fields

PLAN = DevicePlan(population=2, rounds=3, unsafe_no_dp=True, unsafe_reason="a toy")


@pytest.fixture
def ports() -> dict[int, InprocPort]:
    return {index: InprocPort([], PLAN, {"w": (1,)}) for index in (0, 1)}


def answer(port: InprocPort, number: int) -> None:
    port.approve(Fields({"w": np.array([number], np.int32)}), number)


def test_notes_of_a_worker_arrive_in_the_simulation_in_order(ports: dict[int, InprocPort]) -> None:
    here = {index: InprocPort([], PLAN, {"w": (1,)}) for index in (0, 1)}
    worker_log, log = SimulationLog(ports), SimulationLog(here)
    for number in (1, 2):
        answer(ports[1], number)
    expected = list(ports[1].egress)
    worker_log.failed(KeyError("the text of a record"))
    notes = worker_log.take(1)
    assert b"record" not in notes
    log.put(1, notes)
    assert here[1].egress == expected
    assert (here[0].egress, log.failures) == ([], ["KeyError"])
    answer(ports[1], 3)
    log.put(1, worker_log.take(1))
    assert [entry.number for entry in here[1].egress] == [1, 2, 3]
    assert log.failures == ["KeyError"]


def test_notes_are_taken_once_and_those_of_another_device_stay(ports: dict[int, InprocPort]) -> None:
    log = SimulationLog(ports)
    answer(ports[0], 1)
    assert log.take(1) == b""
    assert len(ports[0].egress) == 1
    assert log.take(0) != b""
    assert log.take(0) == b""
    assert ports[0].egress == []
