"""Phase `erase`: one private block of one device is erased, and the run folder is searched for private text.

Invariants
- The erasure is the one that `fedmem block delete` runs: plan, execute with its digest, verify by rescan, receipt.
- The loss after it is measured in a fresh process that opens the vault and fetches by its ordinary path.
- A killed phase rolls the erasure forward; it never runs twice.
"""

import json
import subprocess
import sys
from pathlib import Path

from fedmem import erasure
from fedmem.errors import FedmemError
from fedmem.sim.context import Simulation
from fedmem.sim.folder import Facts, subject
from fedmem.sim.phases.private import open_vault

NEEDLE = 32


def erase_phase(sim: Simulation) -> Facts:
    """Erase the first learned block, if there is one. Facts: status, receipt, verification, residue, loss after."""
    if not sim.population.learned:
        return {"residue": {"before": residue(sim), "after": None}}
    device, topic = sim.population.learned[0]
    sim.progress("erase", 1, 4, "residue scan")
    before = residue(sim)
    sim.progress("erase", 2, 4, f"{subject(device)} {topic}")
    facts = _erase(sim, device, topic)
    sim.progress("erase", 3, 4, "residue scan")
    after = residue(sim)
    sim.progress("erase", 4, 4, "a fresh process answers")
    loss = fresh_process_loss(sim, device, topic) if sim.population.generated else None
    return {"erasure": facts, "residue": {"before": before, "after": after}, "after_erasure": loss}


def _erase(sim: Simulation, device: int, topic: str) -> Facts:
    with open_vault(sim, device) as vault:
        if vault.unfinished_erasures():
            erasure.resume(vault)
        if any(block.topic == topic for block in vault.blocks()):
            planned = erasure.plan(vault, erasure.Scope.block(topic))
            erasure.execute(vault, planned, planned.digest)
        status = [found for found in erasure.status(vault) if found.state == "completed"][-1]
        verified = erasure.verify(vault, status.id).clean
        receipt = Path(status.receipt_path or "").read_bytes()
        public_key = (vault.root / "device.pub").read_bytes()
    erasure.receipt.verify(receipt, public_key)
    copy = sim.folder.receipts / f"{status.id}.json"
    copy.write_bytes(receipt)
    copy.with_suffix(".pub").write_bytes(public_key)
    return {
        "status": status.state,
        "receipt": str(copy),
        "public_key": str(copy.with_suffix(".pub")),
        "verified": verified,
        "device": subject(device),
        # An erased topic's name, and sizes, stay on record for generated data only (I4).
        **({"topic": topic, "counts": status.counts} if sim.population.generated else {}),
    }


def residue(sim: Simulation) -> int:
    """Number of hits of private text, in the clear, below the run folder."""
    return len(erasure.residue.scan(sim.folder.root, needles(sim)))


def needles(sim: Simulation) -> dict[str, bytes]:
    """A piece from the middle of every private record, by a name without meaning."""
    texts = [
        item.text
        for placed in sim.placed
        for item, decision in zip(placed.items, placed.decisions, strict=True)
        if decision.placement == "private"
    ]
    texts += [text for held in sim.population.private_heldout.values() for text in held]
    return {str(number): _middle(text) for number, text in enumerate(texts)}


def _middle(text: str) -> bytes:
    data = text.encode()
    start = max(0, (len(data) - NEEDLE) // 2)
    return data[start : start + NEEDLE]


def fresh_process_loss(sim: Simulation, device: int, topic: str) -> float:
    """What `python -m fedmem.sim.measure` prints. Raises FedmemError where it fails."""
    command = [sys.executable, "-m", "fedmem.sim.measure", sim.folder.name, str(device), topic]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 # our own module, no shell
    if done.returncode:
        raise FedmemError("The fresh process that measures after the erasure failed; run `fedmem doctor`.")
    return float(json.loads(done.stdout)["loss"])
