"""Faults of a simulated population: drawn by seed, within the schema, and without effect on the others."""

import numpy as np

from fedmem.coordinator.journal import Journal
from fedmem.coordinator.run_rounds import run_rounds
from fedmem.device.inproc import InprocPort
from fedmem.federation import fixedpoint, wire
from fedmem.federation.client_app import make_client_app
from fedmem.federation.device import Device, TrainConfig, encode_update
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.rounds import Coordinator, RoundSettings
from fedmem.sim.faults import Faults, LossyGrid, reverse_training
from fedmem.sim.inproc_grid import InProcessGrid

PLAN = DevicePlan(population=10, rounds=3, clip=1.0, unsafe_no_dp=True, unsafe_reason="a test")
SHAPES = {"w": (4,)}
CONFIG = TrainConfig(1, 0, 1, 1, 0.1)


def train(params: wire.Params, config: TrainConfig) -> wire.Params:
    return {"w": params["w"] + np.float32([0.01, 0, 0, -0.02])}


def federation(folder, faults):
    apps = {
        n: make_client_app(
            lambda _, n=n: Device(n, InprocPort([], PLAN, SHAPES), PLAN, SHAPES, faults.training_of(n, train))
        )
        for n in range(10)
    }
    coordinator = Coordinator({"w": np.zeros(4, np.float32)}, PLAN, None, RoundSettings(deadline=60.0))
    traffic = run_rounds(LossyGrid(InProcessGrid(apps), faults), coordinator, Journal(folder), until=3)
    return coordinator.params["w"], [one.counted for one in traffic]


def test_who_fails_is_a_function_of_the_seed():
    one, same, other = (Faults(1000, 0.2, 0.1, seed) for seed in (1, 1, 2))
    assert one.hostile_devices == same.hostile_devices != other.hostile_devices
    assert len(one.hostile_devices) == 100
    lost = [[f.loses_request(number, device) for device in range(1000)] for f in (one, same) for number in (1, 2)]
    assert lost[0] == lost[2]
    assert lost[1] == lost[3]
    assert lost[0] != lost[1]
    assert 150 < sum(lost[0]) < 250
    assert not any(Faults(50, 0.0, 0.0, 1).loses_request(1, device) for device in range(50))


def test_a_hostile_update_is_the_longest_against_the_training():
    before = {"w": np.float32([1, 2, 3, 4])}
    honest = encode_update(before, train(before, CONFIG), 1.0)["w"]
    hostile = encode_update(before, reverse_training(train)(before, CONFIG), 1.0)
    cells = hostile["w"].astype(np.float64)
    assert np.dot(cells, honest) / np.linalg.norm(cells) / np.linalg.norm(honest) < -0.9999
    assert 0.9999 < np.linalg.norm(fixedpoint.decode(hostile["w"], fixedpoint.grid_step(1.0))) <= 1.0
    wire.check(wire.Fields(hostile), wire.anchor_reply(SHAPES, 1.0))


def test_silent_devices_are_not_counted_and_the_rounds_go_on(tmp_path):
    faults = Faults(10, 0.3, 0.0, seed=5)
    moved, counted = federation(tmp_path / "a", faults)
    assert counted == [sum(not faults.loses_request(number, device) for device in range(10)) for number in (1, 2, 3)]
    assert min(counted) < 10
    expected = sum(counted) / 10 * np.float64([0.01, 0, 0, -0.02])
    np.testing.assert_allclose(moved, expected, atol=1e-6)
    again, _ = federation(tmp_path / "b", faults)
    np.testing.assert_array_equal(moved, again)


def test_a_hostile_share_costs_its_own_length_and_breaks_nothing(tmp_path):
    faults = Faults(10, 0.0, 0.2, seed=5)
    moved, counted = federation(tmp_path / "a", faults)
    assert counted == [10, 10, 10]
    step = np.float64([0.01, 0, 0, -0.02])
    np.testing.assert_allclose(moved, 3 * (0.8 * step - 0.2 * step / np.linalg.norm(step)), atol=1e-5)
