"""Arms, faults and measured rounds of the federated phases follow from the scenario."""

from types import SimpleNamespace

from msgspec.structs import replace

from fedmem.federation.device import TrainConfig
from fedmem.sim import scenario
from fedmem.sim.phases.federated import make_local_train
from fedmem.training.settings import Settings


def test_a_device_trains_by_the_scenario_at_the_rate_that_its_round_has_left():
    seen = []
    part = SimpleNamespace(train=lambda params, packed, paths, settings, seed: seen.append((settings, seed)))
    quick = scenario.load("quickstart")
    f = replace(quick.federation, rounds=2, releases=1, final=0.1, warmup=3, eps=1e-3)
    train = make_local_train(part, replace(quick, federation=f), [1, 2], None)
    train({}, TrainConfig(2, seed=5, steps=4, batch=2, learning_rate=1.0, memory_learning_rate=2.0))
    assert seen == [(Settings(4, 2, 0.1, final=1.0, warmup=3, memory_lr=0.2, eps=1e-3), 5)]
