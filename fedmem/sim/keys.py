"""Make the keys for privacy randomness in a simulation (docs/design.md, §7).

Invariants
- A key follows from the seed only where the simulation generated every private record.
- On the user's own text the key is random and lies outside the run folder. It is destroyed when the run is completed.
- A run continues only with the text that it began with, so a key is never used with other data.
"""

import hashlib
import hmac
import os
from pathlib import Path

from fedmem import paths
from fedmem.errors import Refused
from fedmem.sim.context import Simulation
from fedmem.storage.canonical import canonical_json
from fedmem.storage.files import Files


def derive_run_key(sim: Simulation, *labels: object) -> bytes:
    """Return a key of 32 bytes for one use; it is the same again when the run is resumed.

    Guarantees:
        On generated text the key follows from the seed of the run. On other text it follows from 32 random bytes of the
        operating system that exist once for each run.

    Args:
        sim: the simulation.
        labels: the use; different labels give independent keys.
    """
    root = _seeded_root(sim) if sim.population.generated else _random_root(sim)
    return hmac.new(root, "/".join(map(str, labels)).encode(), hashlib.sha256).digest()


def bind_corpus(sim: Simulation) -> None:
    """Bind the user's text to the random key of the run.

    The first call stores an HMAC-SHA-256 over all text, with the run's key. Later calls compare it. On generated text
    nothing happens.

    Args:
        sim: the simulation.

    Raises:
        Refused: the text is not the one that the run began with.
    """
    if sim.population.generated:
        return
    p, key, path = sim.population, _random_root(sim), _key_path(sim).with_suffix(".mac")
    heldout = [[*where, texts] for where, texts in sorted(p.private_heldout.items())]
    items = [[[item.text, item.declared] for item in items] for items in p.devices]
    mac = hmac.new(key, canonical_json([p.coordinator, p.heldout, items, heldout]), hashlib.sha256).digest()
    if not path.exists():
        Files().replace(path, mac)
    elif not hmac.compare_digest(Files().read(path), mac):
        raise Refused("The corpus changed since this run began, so it cannot go on; start a new run with --fresh.")


def destroy_key(sim: Simulation) -> None:
    """Destroy the random key of the run and the HMAC of its text; without them nothing happens.

    Args:
        sim: the simulation.
    """
    for path in (_key_path(sim), _key_path(sim).with_suffix(".mac")):
        Files().destroy(path)


def _seeded_root(sim: Simulation) -> bytes:
    return hashlib.sha256(f"fedmem/sim/seeded-noise/{sim.seed}".encode()).digest()


def _key_path(sim: Simulation) -> Path:
    # Named by the run's random id, so that another run in the same folder never uses this key.
    return paths.slots_dir() / "runs" / f"{sim.folder.inputs()['id']}.key"


def _random_root(sim: Simulation) -> bytes:
    path, files = _key_path(sim), Files()
    if not path.exists():
        files.make_folder(path.parent)
        files.replace(path, os.urandom(32))
    return files.read(path)
