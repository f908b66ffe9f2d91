"""A finished run's federation once more, as `flwr run` starts it: its release, its devices' shareable records.

Invariants
- Only public text is built: the scenario is read without its private part, so no private record is in the process.
- Coordinator and devices derive the same plan from the same run; a device that derives another one answers zeros.
- Noise, where the plan has any, comes from a fresh key: nothing here is part of a run's digest.

    replay = Replay.of({"release": "", "devices": 2, "rounds": 1})
    replay.device(0), replay.coordinator()
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fedmem.device.inproc import InprocPort
from fedmem.errors import Refused, UsageError
from fedmem.federation import wire
from fedmem.federation.coordinator import Coordinator
from fedmem.federation.device import Device
from fedmem.federation.device_dp import DevicePlan
from fedmem.privacy.stream import PrivacyStream
from fedmem.sim import population, run, runs, terms
from fedmem.sim.context import Simulation
from fedmem.sim.folder import RunFolder
from fedmem.sim.phases import federated
from fedmem.sim.phases.central import packed_with_paths
from fedmem.training.local import Federated
from fedmem.training.release import Release


def _public_simulation(folder: RunFolder) -> Simulation:
    whole = run.simulation(folder, lambda *_: None)
    if whole.corpus is not None or whole.scenario.public.source == "chats":
        raise Refused("This run holds people's own text, which no Flower process may read. Use a run on public text.")
    return replace(whole, scenario=replace(whole.scenario, private=[]))


@dataclass(frozen=True)
class Replay:
    """One release of a run, and how many devices and rounds to run it with."""

    folder: Path
    devices: int
    rounds: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Replay":
        """From Flower's run config: `release` (a folder, or "" for the newest of the last run), `devices`, `rounds`."""
        try:
            named, devices, rounds = str(config["release"]), int(config["devices"]), int(config["rounds"])
        except (KeyError, ValueError) as error:
            raise UsageError("The run config needs release, devices and rounds; see server/README.md.") from error
        return cls(Path(named) if named else runs.last_release(), devices, rounds)

    @cached_property
    def sim(self) -> Simulation:
        """The run, public part."""
        return _public_simulation(RunFolder(self.folder.resolve().parents[1]))

    @cached_property
    def part(self) -> Federated:
        """Anchor and bank of the release, with the federated part marked; devices train in it."""
        return self._released()

    def _released(self) -> Federated:
        release = Release.load(self.folder)
        return Federated(release.anchor(), release.bank_state(), self.sim.scenario.federation.parts)

    @property
    def plan(self) -> DevicePlan:
        """The scenario's terms, for these devices and rounds."""
        plan = federated.device_plan(self.sim)
        cohort = min(plan.cohort_size, self.devices)
        return replace(plan, population=self.devices, rounds=self.rounds, cohort_size=cohort)

    def device(self, index: int) -> Device:
        """Device `index` of the run, with its shareable records."""
        if not 0 <= index < len(self.sim.population.devices):
            raise UsageError(f"The run has {len(self.sim.population.devices)} devices; there is none numbered {index}.")
        placed = population.place(self.sim.population.devices[index], self.sim.policy, self.sim.embedder)
        shapes = wire.shapes_of(self.part.params())
        port = InprocPort(placed.shareable(), self.plan, shapes)
        packed, paths_MP = packed_with_paths(self.sim, list(port.shareable()))
        train = federated.local_train(self.part, self.sim.scenario, packed, paths_MP)
        return Device(index, port, self.plan, shapes, train)

    def coordinator(self) -> Coordinator:
        """A coordinator that starts from the release."""
        settings = terms.round_settings(self.sim.scenario, self.sim.derive("flwr") >> 1)
        noise = PrivacyStream(secrets.token_bytes(32), b"flwr run")
        # Not out of `part`: a device of this process may have trained there.
        return Coordinator(self._released().params(), self.plan, noise, settings)
