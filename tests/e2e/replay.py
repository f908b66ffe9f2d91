"""A simulated run's devices and coordinator, made of what a deployment is made of: a release and public terms."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import msgspec

from fedmem.device.inproc import InprocPort
from fedmem.federation import wire
from fedmem.federation.device import Device
from fedmem.federation.local_training import load_federated_part, make_release_train
from fedmem.federation.rounds import Coordinator
from fedmem.federation.terms import Agreement
from fedmem.privacy.stream import PrivacyStream
from fedmem.sim import population, run, terms
from fedmem.sim.context import Simulation
from fedmem.sim.folder import RunFolder


@dataclass(frozen=True)
class Replay:
    """One release of a run, and how many devices and rounds to run it with. `key` is that of the noise."""

    folder: Path
    devices: int
    rounds: int
    key: bytes = bytes(32)

    @cached_property
    def sim(self) -> Simulation:
        whole = run.load_simulation(RunFolder(self.folder.resolve().parents[1]), lambda *_: None)
        return replace(whole, scenario=msgspec.structs.replace(whole.scenario, private=[]))

    @cached_property
    def agreement(self) -> Agreement:
        plan = terms.device_plan(self.sim.scenario)
        cohort = min(plan.cohort_size, self.devices)
        plan = replace(plan, population=self.devices, rounds=self.rounds, cohort_size=cohort)
        rounds = terms.round_settings(self.sim.scenario, self.sim.derive("flwr") >> 1)
        parts = tuple(self.sim.scenario.federation.parts)
        return Agreement(self.folder.name, parts, plan, rounds, terms.local_settings(self.sim.scenario))

    @cached_property
    def params(self) -> wire.Params:
        return load_federated_part(self.folder, self.agreement).params()

    def texts(self, index: int) -> list[str]:
        """Shareable texts of a device of the run."""
        return population.place(self.sim.population.devices[index], self.sim.policy, self.sim.embedder).shareable()

    def device(self, index: int) -> Device:
        shapes, plan = wire.shapes_of(self.params), self.agreement.plan
        port = InprocPort(self.texts(index), plan, shapes)
        return Device(index, port, plan, shapes, make_release_train(self.folder, self.agreement, port.shareable))

    def coordinator(self) -> Coordinator:
        return Coordinator(self.params, self.agreement.plan, PrivacyStream(self.key, b"test"), self.agreement.rounds)
