"""Phases `rounds_<n>`: federated rounds over Flower's messages, then a release (DESIGN §10).

Invariants
- Devices train on records that the policy placed as shared, through a port that cannot reach a vault.
- Both arms, with memory and the control without, take the same road: same devices, seeds, clip and settings.
- A device that fails in training stops the run before its round closes.
- Rounds resume at the last closed one; a round's privacy event is in the ledger before its noise is used.
"""

from collections.abc import Callable

import numpy as np

from fedmem.anchor.presets import new_anchor
from fedmem.errors import FedmemError
from fedmem.eval.perplexity import mean, sequence_losses
from fedmem.federation import apps, device_dp, wire
from fedmem.federation.coordinator import Coordinator, RoundSettings
from fedmem.federation.device import Device, LocalTrain, TrainConfig
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.grid import InProcessGrid
from fedmem.federation.journal import AppendLog, Journal
from fedmem.federation.port import InprocPort
from fedmem.privacy.stream import PrivacyStream
from fedmem.sim import keys, parameters
from fedmem.sim.context import Simulation
from fedmem.sim.folder import Facts
from fedmem.sim.phases.central import Curve, packed_with_paths
from fedmem.training.local import Federated
from fedmem.training.packing import Packed
from fedmem.training.release import Release
from fedmem.training.settings import Settings

ARMS = ("memory", "control")


def device_plan(sim: Simulation) -> DevicePlan:
    """The federation's public terms, over all releases."""
    f = sim.scenario.federation
    return DevicePlan(
        population=sim.scenario.public.devices,
        sampling_rate=f.sampling_rate,
        rounds=f.rounds * f.releases,
        clip=f.clip,
        noise_multiplier=f.noise_multiplier,
        delta=f.delta,
        epsilon_max=f.epsilon_max or None,
        unsafe_no_dp=f.unsafe_no_dp,
        unsafe_reason=f.unsafe_reason,
    )


def journal(sim: Simulation, arm: str) -> Journal:
    """The round journal of an arm; the ledger of the federation lies at the root of the run folder."""
    ledger = AppendLog(sim.folder.root / "ledger.jsonl") if arm == "memory" else None
    return Journal(sim.state(f"rounds-{arm}"), ledger)


def arms(sim: Simulation) -> tuple[str, ...]:
    """Memory, and the control where the anchor is federated without noise: a second federation would spend again."""
    federation = sim.scenario.federation
    return ARMS if "anchor" in federation.parts and federation.noise_multiplier == 0 else ARMS[:1]


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
    if arm in arms(sim):
        part.load(journal(sim, arm).params_at(done))
    return part


def shareable(sim: Simulation) -> list[tuple[Packed, np.ndarray]]:
    """Per device its shareable records as packed sequences, with the path of each row."""
    return [packed_with_paths(sim, placed.shareable()) for placed in sim.placed]


def local_train(part: Federated, packed: Packed, paths_MP: np.ndarray) -> LocalTrain:
    """One device's local steps; one without shareable records changes nothing."""

    def train(params: wire.Params, config: TrainConfig) -> wire.Params:
        settings = Settings(
            steps=config.steps if len(packed) else 0,
            batch=config.batch,
            lr=config.learning_rate,
            final=1.0,
            warmup=1,
            memory_lr=config.memory_learning_rate,
        )
        return part.train(params, packed, paths_MP, settings, config.seed)

    return train


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
        points.append({"phase": name, "step": until, "loss": _sample_loss(sim, part), "split": "heldout"})
        release = _release(sim, part)
        traffic = [vars(t) for t in journal(sim, "memory").traffic()]
        return {
            "curve": points,
            "release": release.digest,
            "traffic": traffic,
            "wire": journal(sim, "memory").wire_digest(),
        }

    return phase


def _run_arm(
    sim: Simulation, arm: str, data: list[tuple[Packed, np.ndarray]], until: int, progress: apps.Progress
) -> None:
    part, plan, log, f = federated(sim, arm), device_plan(sim), journal(sim, arm), sim.scenario.federation
    shapes = wire.shapes_of(part.params())
    devices, failures = {}, list[str]()
    for index, (placed, (packed, paths_MP)) in enumerate(zip(sim.placed, data, strict=True)):
        port = InprocPort(placed.shareable(), plan, shapes)
        devices[index] = Device(
            index,
            port,
            plan,
            shapes,
            local_train(part, packed, paths_MP),
            failed=lambda error: failures.append(type(error).__name__),
        )
    settings = RoundSettings(sim.derive("rounds") >> 1, f.steps, f.batch, f.lr, f.server_lr, f.memory_lr)
    quiet = plan.noise_multiplier == 0 and plan.sampling_rate == 1
    noise = None if quiet else PrivacyStream(keys.run_key(sim, "rounds"), arm.encode())
    start = part.params()
    coordinator = apps.resumed(log, lambda params, done: Coordinator(params or start, plan, noise, settings, done))
    grid = InProcessGrid({index: apps.make_client_app(lambda _, d=device: d) for index, device in devices.items()})  # type: ignore[misc]
    apps.run_rounds(grid, coordinator, log, until=until, progress=progress, closing=lambda: _check(failures))


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
