"""Phases `rounds_<n>`: federated rounds over Flower's messages, then a release (docs/design.md, §10).

Invariants
- Devices train on records that the policy placed as shared, through a port that cannot reach a vault.
- Both arms, with memory and the control without, take the same road: same devices, seeds, clip and settings.
- A device that fails in training stops the run before its round closes; silent and hostile ones are the scenario's own.
- Rounds resume at the last closed one; a round's privacy event is in the ledger before its noise is used.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fedmem.anchor.presets import new_anchor
from fedmem.coordinator.journal import AppendLog, Journal
from fedmem.coordinator.run_rounds import Progress, resumed, run_rounds
from fedmem.device.inproc import InprocPort
from fedmem.device.simulation_log import SimulationLog
from fedmem.errors import FedmemError
from fedmem.eval.perplexity import mean, sequence_losses
from fedmem.federation import device_dp, local_training, wire
from fedmem.federation.client_app import make_client_app
from fedmem.federation.device import Device, LocalTrain
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.rounds import Coordinator
from fedmem.privacy.stream import PrivacyStream
from fedmem.sim import keys, parameters, terms
from fedmem.sim.context import Simulation
from fedmem.sim.faults import Faults, LossyGrid
from fedmem.sim.folder import Facts
from fedmem.sim.inproc_grid import InProcessGrid
from fedmem.sim.phases.central import CURVE_POINTS, Curve, packed_with_paths
from fedmem.sim.scenario import Scenario
from fedmem.training.local import Federated
from fedmem.training.packing import Packed
from fedmem.training.release import Release

ARMS = ("memory", "control")
DEADLINE = 60.0
"""Virtual seconds that a round waits for devices that do not answer."""


def device_plan(sim: Simulation) -> DevicePlan:
    """The federation's public terms, over all releases."""
    return terms.device_plan(sim.scenario)


def journal(sim: Simulation, arm: str) -> Journal:
    """The round journal of an arm; the ledger of the federation lies at the root of the run folder."""
    ledger = AppendLog(sim.folder.root / "ledger.jsonl") if arm == "memory" else None
    return Journal(sim.state(f"rounds-{arm}"), ledger)


def arms(sim: Simulation) -> tuple[str, ...]:
    """Memory, and the control where the anchor is federated without noise: a second federation would spend again."""
    federation, control = sim.scenario.federation, sim.scenario.anchor.control
    return ARMS if control and "anchor" in federation.parts and federation.noise_multiplier == 0 else ARMS[:1]


def federated(sim: Simulation, arm: str) -> Federated:
    """Anchor and bank of an arm as co-training left them, with the federated part marked."""
    model = new_anchor(sim.scenario.anchor.preset, sim.vocabulary, 0)
    if arm == "control":
        parameters.load(sim.state("control.safetensors"), model, sim.spec)
        return Federated(model, None, ["anchor"])
    state = parameters.load(sim.state("cotrained.safetensors"), model, sim.spec)
    return Federated(model, state, sim.scenario.federation.parts)


def arm_at(sim: Simulation, arm: str, done: int) -> Federated:
    """An arm after `done` closed rounds, out of its journal's checkpoints."""
    part = federated(sim, arm)
    if arm in arms(sim) and done:
        part.load(journal(sim, arm).params_at(done))
    return part


def shareable(sim: Simulation) -> list[tuple[Packed, np.ndarray]]:
    """Per device its shareable records as packed sequences, with the path of each row."""
    return [packed_with_paths(sim, placed.shareable()) for placed in sim.placed]


def local_train(part: Federated, scenario: Scenario, packed: Packed, paths_MP: np.ndarray) -> LocalTrain:
    """Return one device's local steps, as `fedmem.federation.local_training` takes them."""
    local, steps = terms.local_settings(scenario), terms.steps_by_round(scenario.federation)
    return local_training.local_train(part, local, steps, packed, paths_MP)


def rounds_phase(number: int) -> Callable[[Simulation], Facts]:
    """The phase that ends with release `number`, counted from 1."""

    def phase(sim: Simulation) -> Facts:
        until, name = number * sim.scenario.federation.rounds, f"rounds_{number}"
        data, chosen = shareable(sim), arms(sim)
        total, points = len(chosen) * sim.scenario.federation.rounds, list[Facts]()
        for place, arm in enumerate(chosen):
            offset = place * sim.scenario.federation.rounds - (number - 1) * sim.scenario.federation.rounds
            _run_arm(sim, arm, data, until, lambda done, _, o=offset: sim.progress(name, o + done, total, ""))  # type: ignore[misc]
        part = arm_at(sim, "memory", until)
        for done in measured(until - sim.scenario.federation.rounds, until):
            loss = _sample_loss(sim, arm_at(sim, "memory", done))
            points.append({"phase": name, "step": done, "loss": loss, "split": "heldout"})
        release = _release(sim, part)
        traffic = [vars(t) for t in journal(sim, "memory").traffic()]
        return {
            "curve": points,
            "release": release.digest,
            "traffic": traffic,
            "wire": journal(sim, "memory").wire_digest(),
        }

    return phase


def measured(first: int, last: int) -> list[int]:
    """Rounds after `first` whose held-out loss is kept, `last` among them; none where there are no rounds."""
    every = max(1, (last - first) // CURVE_POINTS)
    return list(range(last, first, -every))[::-1]


def _run_arm(sim: Simulation, arm: str, data: list[tuple[Packed, np.ndarray]], until: int, progress: Progress) -> None:
    part, plan, log, f = federated(sim, arm), device_plan(sim), journal(sim, arm), sim.scenario.federation
    shapes, faults = wire.shapes_of(part.params()), population_faults(sim)
    devices, ports = dict[int, Device](), dict[int, InprocPort]()
    noted = SimulationLog(ports)
    for index, (placed, (packed, paths_MP)) in enumerate(zip(sim.placed, data, strict=True)):
        ports[index] = InprocPort(placed.shareable(), plan, shapes)
        devices[index] = Device(
            index,
            ports[index],
            plan,
            shapes,
            faults.training(index, local_train(part, sim.scenario, packed, paths_MP)),
            failed=noted.failed,
        )
    settings = replace(terms.round_settings(sim.scenario, sim.derive("rounds") >> 1), deadline=DEADLINE)
    quiet = plan.noise_multiplier == 0 and not plan.sampled
    noise = None if quiet else PrivacyStream(keys.run_key(sim, "rounds"), arm.encode())
    start = part.params()
    coordinator = resumed(log, lambda params, done: Coordinator(params or start, plan, noise, settings, done))
    clients = {index: make_client_app(lambda _, d=device: d) for index, device in devices.items()}  # type: ignore[misc]
    with InProcessGrid(clients, workers=sim.workers, aside=noted) as fleet:
        grid = LossyGrid(fleet, faults) if f.silent else fleet
        run_rounds(grid, coordinator, log, until=until, progress=progress, closing=lambda: _check(noted.failures))


def population_faults(sim: Simulation) -> Faults:
    """Who is silent and who is hostile in this run."""
    f = sim.scenario.federation
    return Faults(sim.scenario.public.devices, f.silent, f.hostile, sim.derive("faults") % 2**32)


def _check(failures: list[str]) -> None:
    """A device on its own answers zeros and goes on; in a simulation its failure is ours to see."""
    if failures:
        raise FedmemError(f"A simulated device failed in training with {failures[0]}; this is a bug, please report it.")


def _sample_loss(sim: Simulation, part: Federated) -> float:
    curve = Curve(sim, "", 1, part.model)
    return mean(
        sequence_losses(part.model, curve.sequences.tokens_NT, part.memory, lambda n: part.sources(curve.paths_NP[n]))
    )


def _release(sim: Simulation, part: Federated) -> Release:
    assert part.state is not None
    bank = part.state.stream()
    return Release.write(sim.folder.releases, part.model, sim.tokenizer, sim.tree, sim.embedder.digest, bank)


def epsilon(sim: Simulation) -> device_dp.Figures:
    """ε of the device-level part after all rounds."""
    return device_dp.figures(device_plan(sim), sim.scenario.federation.rounds * sim.scenario.federation.releases)
