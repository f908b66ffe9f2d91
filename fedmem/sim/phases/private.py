"""Execute the phase `private`: each device learns private blocks in its own vault (docs/design.md, §7 and §8).

Invariants
- Records go into the vault sealed. A block is trained on the first release, with anchor and shared blocks frozen.
- A phase that was killed continues: records and blocks in a vault stay, and an open training run is resumed without a
  second charge.
- The key of a training run follows from the seed only where every private record was generated.
"""

import hashlib
import shutil
from functools import lru_cache

from fedmem.device.learning import LearnSettings, learn_topic
from fedmem.device.private_fetch import block_for
from fedmem.policy.policy import Topic
from fedmem.privacy.dpsgd import Optimiser
from fedmem.privacy.ledger import block_epsilon
from fedmem.privacy.plan import PrivacyPlan
from fedmem.routing.router import route
from fedmem.sim import keys
from fedmem.sim.context import Simulation
from fedmem.sim.folder import Facts, subject_of
from fedmem.training.release import Release
from fedmem.vault.vault import ALL, BlockInfo, NewRecord, Vault


def first_release(sim: Simulation) -> Release:
    """Return the release that private blocks are trained on and answer for.

    Args:
        sim: the simulation; the phase `rounds_1` is done.
    """
    return Release.load(sim.folder.releases / sim.facts("rounds_1")["release"])


def private_phase(sim: Simulation) -> Facts:
    """Fill the vaults of all devices, then learn the topics of each device.

    Args:
        sim: the simulation.

    Returns:
        The facts of each block, in the order of devices and topics.
    """
    release, learned, blocks = first_release(sim), sim.population.learned, list[Facts]()
    total = len(learned) * sim.scenario.learning.steps
    for device in private_devices(sim):
        with _open_or_create(sim, device) as vault:
            _fill(sim, vault, device, release)
            for topic in [topic for owner, topic in learned if owner == device]:
                sim.progress("private", len(blocks) * sim.scenario.learning.steps, total, subject_of(device))
                block = _learn(sim, vault, release, device, topic, len(blocks), total)
                blocks.append(_block_facts(vault, block, device, sim.policy.topics[topic]))
    return {"blocks": blocks}


def open_vault(sim: Simulation, device: int, write: bool = True) -> Vault:
    """Open the vault of a device.

    Args:
        sim: the simulation.
        device: the index of the device.
        write: open for writing.

    Raises:
        NothingMatched: the device has no vault.
    """
    return Vault.open(sim.folder.vault(device), subject=subject_of(device), write=write)


def _open_or_create(sim: Simulation, device: int) -> Vault:
    """Open or create the vault of a device; a vault whose noise will be seeded is marked as simulated."""
    root = sim.folder.vault(device)
    if (root / "vault.json").exists():
        return open_vault(sim, device)
    shutil.rmtree(root, ignore_errors=True)  # without vault.json the creation was cut and nothing is in it
    return Vault.create(root, subject=subject_of(device), keystore="keyfile", simulated=sim.population.generated)


def private_devices(sim: Simulation) -> list[int]:
    """Return the indices of the devices with a private record; these devices have a vault.

    Args:
        sim: the simulation.
    """
    return [n for n, placed in enumerate(sim.placed) if any(d.placement == "private" for d in placed.decisions)]


def _fill(sim: Simulation, vault: Vault, device: int, release: Release) -> None:
    placed = sim.placed[device]
    private_numbers = [number for number, decision in enumerate(placed.decisions) if decision.placement == "private"]
    if vault.records(ALL):
        return
    paths_NP = route(release.tree, placed.vectors_ND[private_numbers])
    vault.add_records(
        [
            NewRecord(
                text=placed.items[number].text,
                topic=placed.decisions[number].topic,
                path=tuple(int(node) for node in path_P),
                vector=placed.vectors_ND[number],
                release=release.digest,
            )
            for number, path_P in zip(private_numbers, paths_NP, strict=True)
        ]
    )


def _learn(
    sim: Simulation, vault: Vault, release: Release, device: int, topic: str, blocks_before: int, total: int
) -> BlockInfo:
    if block := block_for(vault, topic, release.digest):
        return block
    policy_topic, learning = sim.policy.topics[topic], sim.scenario.learning
    seed = int(hashlib.sha256(f"{release.digest}/{topic}".encode()).hexdigest()[:8], 16)
    settings = LearnSettings(learning.width, sim.scenario.anchor.length, seed, Optimiser(lr=learning.lr))
    key = keys.derive_run_key(sim, "block", device, topic, release.digest) if vault.simulated else None
    return learn_topic(
        vault,
        release,
        policy_topic,
        privacy_plan(sim, policy_topic),
        settings=settings,
        run_key=key,
        progress=lambda step, _: sim.progress(
            "private", blocks_before * learning.steps + step, total, subject_of(device)
        ),
    )


def privacy_plan(sim: Simulation, topic: Topic) -> PrivacyPlan:
    """Return the scenario's public settings of DP-SGD, with the noise that meets the topic's ε and δ.

    Args:
        sim: the simulation.
        topic: gives ε and δ.

    Raises:
        Refused: no noise reaches this ε.
    """
    c = sim.scenario.learning
    return _calibrated(
        PrivacyPlan(c.sampling_rate, c.steps, c.clip, 0.0, c.sampling_rate * c.nominal, topic.delta, c.record_cap),
        topic.epsilon,
    )


@lru_cache
def _calibrated(plan: PrivacyPlan, epsilon: float) -> PrivacyPlan:
    return plan.calibrate(epsilon)


def _block_facts(vault: Vault, block: BlockInfo, device: int, topic: Topic) -> Facts:
    facts = {
        "device": subject_of(device),
        "block": block.id,
        "topic": topic.name if vault.simulated else None,
        "epsilon": block_epsilon(vault.ledger.events(), block.id, topic.delta),
        "delta": topic.delta,
        "bytes": block.bytes,
    }
    # A digest of parameters is kept for generated data only: it shows there that two runs are equal (I9).
    return facts | ({"digest": hashlib.sha256(vault.block_rows(block.id)).hexdigest()} if vault.simulated else {})
