"""Execute the phase `erase`: erase a private block of one device, and search the run folder for private text.

Invariants
- The erasure is the one of `fedmem block delete`: plan, execute with the plan's digest, verify by rescan, receipt.
- The loss after the erasure is measured in a fresh process that opens the vault and fetches as usual.
- A phase that was killed completes its erasure. It never erases twice.
"""

import json
import subprocess
import sys
from pathlib import Path

from fedmem import erasure
from fedmem.errors import FedmemError
from fedmem.sim.context import Simulation
from fedmem.sim.folder import Facts, subject_of
from fedmem.sim.phases.private import open_vault

NEEDLE = 32
"""The length, in bytes, of the pieces of private text that are searched for."""


def erase_phase(sim: Simulation) -> Facts:
    """Erase the first learned block, if there is one.

    Args:
        sim: the simulation.

    Returns:
        The erasure (status, receipt, verification), the residue before and after, and the loss after the erasure.
    """
    if not sim.population.learned:
        return {"residue": {"before": count_residue(sim), "after": None}}
    device, topic = sim.population.learned[0]
    sim.progress("erase", 1, 4, "residue scan")
    before = count_residue(sim)
    sim.progress("erase", 2, 4, f"{subject_of(device)} {topic}")
    facts = _erase(sim, device, topic)
    sim.progress("erase", 3, 4, "residue scan")
    after = count_residue(sim)
    sim.progress("erase", 4, 4, "a fresh process answers")
    loss = fresh_process_loss(sim, device, topic) if sim.population.generated else None
    return {"erasure": facts, "residue": {"before": before, "after": after}, "after_erasure": loss}


def _erase(sim: Simulation, device: int, topic: str) -> Facts:
    with open_vault(sim, device) as vault:
        if vault.unfinished_erasures():
            erasure.resume(vault)
        if any(block.topic == topic for block in vault.blocks()):
            erasure_plan = erasure.plan(vault, erasure.Scope.block(topic))
            erasure.execute(vault, erasure_plan, erasure_plan.digest)
        status = [entry for entry in erasure.status(vault) if entry.state == "completed"][-1]
        verified = erasure.verify(vault, status.id).is_clean
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
        "device": subject_of(device),
        # The name of an erased topic, and sizes, are kept for generated data only (I4).
        **({"topic": topic, "counts": status.counts} if sim.population.generated else {}),
    }


def count_residue(sim: Simulation) -> int:
    """Return the number of places below the run folder where private text lies in the clear.

    Args:
        sim: the simulation.
    """
    return len(erasure.residue.scan(sim.folder.root, search_pieces(sim)))


def search_pieces(sim: Simulation) -> dict[str, bytes]:
    """Return a piece from the middle of every private record, by its number.

    Args:
        sim: the simulation.
    """
    texts = [
        item.text
        for placed in sim.placed
        for item, decision in zip(placed.items, placed.decisions, strict=True)
        if decision.placement == "private"
    ]
    texts += [text for heldout_texts in sim.population.private_heldout.values() for text in heldout_texts]
    return {str(number): _middle(text) for number, text in enumerate(texts)}


def _middle(text: str) -> bytes:
    data = text.encode()
    start = max(0, (len(data) - NEEDLE) // 2)
    return data[start : start + NEEDLE]


def fresh_process_loss(sim: Simulation, device: int, topic: str) -> float:
    """Return the loss that `python -m fedmem.sim.measure` prints.

    Args:
        sim: the simulation.
        device: the index of the device.
        topic: the private topic.

    Raises:
        FedmemError: the process failed.
    """
    command = [sys.executable, "-m", "fedmem.sim.measure", sim.folder.name, str(device), topic]
    process = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 # our own module, no shell
    if process.returncode:
        raise FedmemError("The fresh process that measures after the erasure failed; run `fedmem doctor`.")
    return float(json.loads(process.stdout)["loss"])
