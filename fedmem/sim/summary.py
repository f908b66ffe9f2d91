"""Make `run.json`: the results of all phases in one public document, and the run's digest (I9).

Invariants
- The digest is a SHA-256 over the parameters of anchor, banks and generated-data blocks, the ledgers' events and the
  wire transcript. It does not cover salts, keys, times, random ids or signatures.
- On the user's own text the private part stays outside the digest, since its noise is random.
"""

import hashlib
import math
import resource
from typing import Any

from fedmem.federation.rounds import local_steps
from fedmem.privacy.ledger import read_charges
from fedmem.sim.context import Simulation
from fedmem.sim.folder import Facts
from fedmem.sim.phases.federated import compute_epsilon, load_arm, open_journal
from fedmem.sim.phases.private import open_vault, private_devices
from fedmem.storage.canonical import digest

STATE_FILES = ("pretrained", "control", "cotrained")
PER_STEP = 4
"""Bytes for each parameter and step if gradients were exchanged as bf16: 2 up, 2 down."""


def run_digest(sim: Simulation, facts: dict[str, Facts]) -> str:
    """Return the digest of a finished run.

    Args:
        sim: the simulation.
        facts: the facts of its finished phases, by phase.
    """
    public: dict[str, Any] = {
        "scenario": sim.scenario.digest(),
        "seed": sim.seed,
        "parameters": {
            n: _file(sim, f"{n}.safetensors") for n in STATE_FILES if sim.state(f"{n}.safetensors").exists()
        },
        "tokenizer": _file(sim, "tokenizer.json"),
        "tree": sim.tree.digest,
        "releases": release_digests(sim, facts),
        "ledger": open_journal(sim, "memory").ledger.entries(),
        "wire": open_journal(sim, "memory").wire_digest(),
    }
    if sim.population.generated and "private" in facts:
        public["blocks"] = [[b["device"], b["topic"], b["digest"]] for b in facts["private"]["blocks"]]
        public["spends"] = [[d, _spends(sim, d)] for d in private_devices(sim)]
    return digest(public)


def _file(sim: Simulation, name: str) -> str:
    return hashlib.sha256(sim.state(name).read_bytes()).hexdigest()


def _spends(sim: Simulation, device: int) -> list[Any]:
    with open_vault(sim, device, write=False) as vault:
        return [[charge.spend.to_dict(), len(charge.records or ())] for charge in read_charges(vault.ledger.events())]


def release_digests(sim: Simulation, facts: dict[str, Facts]) -> list[str]:
    """Return the digests of the releases, oldest first.

    Args:
        sim: the simulation.
        facts: the facts of its finished phases, by phase.
    """
    return [facts[f"rounds_{number + 1}"]["release"] for number in range(sim.scenario.federation.releases)]


def summarise_run(sim: Simulation) -> Facts:
    """Return the content of `run.json`.

    Args:
        sim: the simulation; every phase is done.
    """
    facts = sim.folder.facts()
    evaluation, erasure_facts = facts["evaluate"], facts["erase"]
    return {
        "name": sim.folder.name,
        "scenario": sim.scenario.name,
        "seed": sim.seed,
        "state": "completed",
        "corpus": _corpus(sim),
        "config": sim.scenario.to_dict(),
        "attribution": facts["prepare"]["attribution"],
        "parameters": facts["pretrain"]["parameters"],
        "releases": release_digests(sim, facts),
        "loss": _losses(facts, evaluation, erasure_facts),
        "epsilon": _epsilon(sim, facts),
        "bytes": _bytes(sim, facts),
        "erasure": erasure_facts.get("erasure"),
        "placement": facts["prepare"]["placement"],
        "residue": erasure_facts["residue"],
        "digest": run_digest(sim, facts),
        "peak_rss_mb": peak_rss_mb(),
        "seconds": _seconds(facts),
    }


def _corpus(sim: Simulation) -> str:
    """Return the kind of the run's text: `user`, `generated`, or the name of the source.

    Generated text is a function of scenario and seed.
    """
    if sim.corpus:
        return "user"
    return "generated" if sim.population.generated else sim.scenario.public.source


def _losses(facts: dict[str, Facts], evaluation: Facts, erasure_facts: Facts) -> Facts:
    blocks, erasure = evaluation["private_blocks"], erasure_facts.get("erasure")
    private = None
    if blocks and erasure:
        row = next(b for b in blocks if (b["device"], b["topic"]) == (erasure["device"], erasure["topic"]))
        private = {"without": row["without"], "with": row["with"], "after_erasure": erasure_facts["after_erasure"]}
    return {
        "public": evaluation["loss"],
        "rounds": evaluation["rounds"],
        "private": private,
        "private_blocks": blocks,
        "by_phase": [point for phase in facts.values() for point in phase.get("curve", [])],
        "by_frequency": evaluation["by_frequency"],
    }


def _epsilon(sim: Simulation, facts: dict[str, Facts]) -> Facts:
    figures, blocks = compute_epsilon(sim), facts.get("private", {}).get("blocks", [])
    terms = f"readers of released anchors; {figures.adjacency}, or zeros in its place; {figures.accounting}"
    block_rows = [{key: block[key] for key in ("device", "block", "topic", "epsilon", "delta")} for block in blocks]
    return {
        "device": figures.readers if math.isfinite(figures.readers) else None,
        "device_reason": figures.reason or terms,
        "device_delta": figures.delta,
        "coordinator": None,
        "coordinator_reason": "infinite: the coordinator sees each update until secure aggregation carries the noise",
        "blocks_max": max((block["epsilon"] for block in blocks), default=None),
        "blocks": block_rows,
    }


def _bytes(sim: Simulation, facts: dict[str, Facts]) -> Facts:
    """Return the traffic, and a comparison with exchanging the gradients of each local step in bf16.

    `per_device_round` is all traffic divided by the number of counted answers. Lost requests and refused answers are
    part of the traffic. `per_step_exchange` is the mean for the local steps behind a counted answer.
    """
    f = sim.scenario.federation
    traffic = facts[f"rounds_{f.releases}"]["traffic"]
    answers, coordinates = (
        sum(t["counted"] for t in traffic),
        sum(v.size for v in load_arm(sim, "memory").params().values()),
    )
    bytes_per_answer = sum(t["up"] + t["down"] for t in traffic) // max(1, answers)
    steps = sum(t["counted"] * local_steps(t["round"], f.steps, f.first_steps) for t in traffic)
    per_step = PER_STEP * coordinates * steps // max(1, answers)
    return {
        "per_device_round": bytes_per_answer,
        "coordinates": coordinates,
        "per_step_exchange": per_step if traffic else None,
        "below_per_step": per_step / bytes_per_answer if bytes_per_answer else None,
        "rounds": [{"round": t["round"], "up": t["up"], "down": t["down"], "counted": t["counted"]} for t in traffic],
    }


def _seconds(facts: dict[str, Facts]) -> Facts:
    seconds = {phase: results["seconds"] for phase, results in facts.items()}
    return {"total": sum(seconds.values()), **seconds}


def peak_rss_mb() -> float:
    """Return the peak resident memory in MB, of this process or of its largest child process."""
    scopes = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(scope).ru_maxrss for scope in scopes) / 1024
