"""Execute the phases `rounds_<n>`: federated rounds over Flower's messages, then a release (docs/design.md, §10).

Invariants
- Devices train on records that the policy placed as shared, through a port that cannot reach a vault.
- Both arms, with memory and the control without it, have the same devices, seeds, clip norm and settings.
- A device that fails in training stops the run before its round closes. Silent and hostile devices are part of the
  scenario and stop nothing.
- A run resumes after the last closed round. A round's privacy event is in the ledger before its noise is used.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fedmem.anchor.presets import new_anchor
from fedmem.coordinator.journal import AppendLog, Journal
from fedmem.coordinator.run_rounds import Progress, resume_coordinator, run_rounds
from fedmem.device.inproc import InprocPort
from fedmem.device.simulation_log import SimulationLog
from fedmem.errors import FedmemError
from fedmem.eval.perplexity import mean_loss, sequence_losses
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
from fedmem.sim.phases.central import CURVE_POINTS, Curve, pack_with_paths
from fedmem.sim.scenario import Scenario
from fedmem.training.local import Federated
from fedmem.training.packing import Packed
from fedmem.training.release import Release

ARMS = ("memory", "control")
DEADLINE = 60.0
"""Virtual seconds that a round waits for devices that do not answer."""


def device_plan(sim: Simulation) -> DevicePlan:
    """Return the federation's public terms, over all releases.

    Args:
        sim: the simulation.
    """
    return terms.device_plan(sim.scenario)


def open_journal(sim: Simulation, arm: str) -> Journal:
    """Return the round journal of an arm; the ledger of the federation is `ledger.jsonl` in the run folder.

    Args:
        sim: the simulation.
        arm: `memory` or `control`.

    Raises:
        VerificationFailed: an entry was changed.
    """
    ledger = AppendLog(sim.folder.root / "ledger.jsonl") if arm == "memory" else None
    return Journal(sim.state(f"rounds-{arm}"), ledger)


def arm_names(sim: Simulation) -> tuple[str, ...]:
    """Return the arms of the federation: memory, and in some scenarios the control.

    The control takes part only where the anchor is federated without noise. With noise, a second federation would spend
    ε again.

    Args:
        sim: the simulation.
    """
    federation, control = sim.scenario.federation, sim.scenario.anchor.control
    return ARMS if control and "anchor" in federation.parts and federation.noise_multiplier == 0 else ARMS[:1]


def load_arm(sim: Simulation, arm: str) -> Federated:
    """Return anchor and bank of an arm after co-training, with the federated part marked.

    Args:
        sim: the simulation; co-training is done.
        arm: `memory` or `control`.
    """
    model = new_anchor(sim.scenario.anchor.preset, sim.vocabulary, 0)
    if arm == "control":
        parameters.load(sim.state("control.safetensors"), model, sim.spec)
        return Federated(model, None, ["anchor"])
    state = parameters.load(sim.state("cotrained.safetensors"), model, sim.spec)
    return Federated(model, state, sim.scenario.federation.parts)


def load_arm_at(sim: Simulation, arm: str, done: int) -> Federated:
    """Return an arm after `done` closed rounds, from the checkpoints of its journal.

    Args:
        sim: the simulation; co-training is done.
        arm: `memory` or `control`.
        done: the number of closed rounds; 0 for the arm before them.

    Raises:
        NothingMatched: the round is not closed.
    """
    part = load_arm(sim, arm)
    if arm in arm_names(sim) and done:
        part.load(open_journal(sim, arm).params_at(done))
    return part


def shareable_records(sim: Simulation) -> list[tuple[Packed, np.ndarray]]:
    """Return, for each device, its shareable records as packed sequences and the path of each row.

    Args:
        sim: the simulation.
    """
    return [pack_with_paths(sim, placed.shareable()) for placed in sim.placed]


def make_local_train(part: Federated, scenario: Scenario, packed: Packed, paths_MP: np.ndarray) -> LocalTrain:
    """Return the local training of one device, as `fedmem.federation.local_training` defines it.

    Args:
        part: the federated part.
        scenario: the scenario of the run.
        packed: the device's packed sequences.
        paths_MP: the path of each row, of shape (rows, levels).
    """
    local, steps = terms.local_settings(scenario), terms.steps_by_round(scenario.federation)
    return local_training.make_local_train(part, local, steps, packed, paths_MP)


def make_rounds_phase(number: int) -> Callable[[Simulation], Facts]:
    """Return the phase that ends with release `number`, counted from 1.

    Args:
        number: the number of the release.
    """

    def phase(sim: Simulation) -> Facts:
        until, name = number * sim.scenario.federation.rounds, f"rounds_{number}"
        data, run_arms = shareable_records(sim), arm_names(sim)
        total, points = len(run_arms) * sim.scenario.federation.rounds, list[Facts]()
        for position, arm in enumerate(run_arms):
            offset = position * sim.scenario.federation.rounds - (number - 1) * sim.scenario.federation.rounds
            _run_arm(sim, arm, data, until, lambda done, _, o=offset: sim.progress(name, o + done, total, ""))  # type: ignore[misc]
        part = load_arm_at(sim, "memory", until)
        for done in measured_rounds(until - sim.scenario.federation.rounds, until):
            loss = _sample_loss(sim, load_arm_at(sim, "memory", done))
            points.append({"phase": name, "step": done, "loss": loss, "split": "heldout"})
        release = _release(sim, part)
        traffic = [vars(t) for t in open_journal(sim, "memory").traffic()]
        return {
            "curve": points,
            "release": release.digest,
            "traffic": traffic,
            "wire": open_journal(sim, "memory").wire_digest(),
        }

    return phase


def measured_rounds(first: int, last: int) -> list[int]:
    """Return the rounds after `first` whose held-out loss is measured, `last` included.

    Without rounds the list is empty.

    Args:
        first: the last round of the release before.
        last: the last round of this release.
    """
    interval = max(1, (last - first) // CURVE_POINTS)
    return list(range(last, first, -interval))[::-1]


def _run_arm(sim: Simulation, arm: str, data: list[tuple[Packed, np.ndarray]], until: int, progress: Progress) -> None:
    part, plan, log, f = load_arm(sim, arm), device_plan(sim), open_journal(sim, arm), sim.scenario.federation
    shapes, faults = wire.shapes_of(part.params()), population_faults(sim)
    devices, ports = dict[int, Device](), dict[int, InprocPort]()
    simulation_log = SimulationLog(ports)
    for index, (placed, (packed, paths_MP)) in enumerate(zip(sim.placed, data, strict=True)):
        ports[index] = InprocPort(placed.shareable(), plan, shapes)
        devices[index] = Device(
            index,
            ports[index],
            plan,
            shapes,
            faults.training_of(index, make_local_train(part, sim.scenario, packed, paths_MP)),
            failed=simulation_log.failed,
        )
    settings = replace(terms.round_settings(sim.scenario, sim.derive("rounds") >> 1), deadline=DEADLINE)
    needs_no_noise = plan.noise_multiplier == 0 and not plan.sampled
    noise = None if needs_no_noise else PrivacyStream(keys.derive_run_key(sim, "rounds"), arm.encode())
    start = part.params()
    coordinator = resume_coordinator(
        log, lambda params, done: Coordinator(params or start, plan, noise, settings, done)
    )
    clients = {index: make_client_app(lambda _, d=device: d) for index, device in devices.items()}  # type: ignore[misc]
    with InProcessGrid(clients, workers=sim.workers, simulation_log=simulation_log) as fleet:
        grid = LossyGrid(fleet, faults) if f.silent else fleet
        run_rounds(
            grid,
            coordinator,
            log,
            until=until,
            progress=progress,
            closing=lambda: _check_failures(simulation_log.failures),
        )


def population_faults(sim: Simulation) -> Faults:
    """Return the silent and hostile devices of this run.

    Args:
        sim: the simulation.
    """
    f = sim.scenario.federation
    return Faults(sim.scenario.public.devices, f.silent, f.hostile, sim.derive("faults") % 2**32)


def _check_failures(failures: list[str]) -> None:
    """Raise FedmemError if a simulated device failed.

    A deployed device sends zeros and continues. In a simulation a failure is a bug that must be seen.
    """
    if failures:
        raise FedmemError(f"A simulated device failed in training with {failures[0]}; this is a bug, please report it.")


def _sample_loss(sim: Simulation, part: Federated) -> float:
    curve = Curve(sim, "", 1, part.model)
    return mean_loss(
        sequence_losses(part.model, curve.sequences.tokens_NT, part.memory, lambda n: part.sources(curve.paths_NP[n]))
    )


def _release(sim: Simulation, part: Federated) -> Release:
    assert part.state is not None
    bank = part.state.stream()
    return Release.write(sim.folder.releases, part.model, sim.tokenizer, sim.tree, sim.embedder.digest, bank)


def compute_epsilon(sim: Simulation) -> device_dp.Figures:
    """Return the ε of the device-level part after all rounds.

    Args:
        sim: the simulation.
    """
    return device_dp.figures(device_plan(sim), sim.scenario.federation.rounds * sim.scenario.federation.releases)
