"""Erasing a private block, beside retraining and beside other stores: `python -m benchmarks.erase`.

A vault holds 100 or 10,000 blocks and, beside them, a topic with ten records and a block of 768 KiB. Its erasure is
timed whole (plan, execution, rescan, receipt) in a folder in memory, where a sync costs nothing: on a disk its syncs
come on top. The key table is one file, so its own bytes grow with the vault; the same table is written and read once
more in each turn, and that time is taken off before the two vaults are compared.

Retraining is that of the one block, the least that could be done without erasing: some steps of the default plan are
timed and counted up. Where the knowledge lies in the weights it is the anchor's, from its start, at the default length
and number of steps of `fedmem anchor train`; that is given beside it.

Residue is measured by `benchmarks.residues`, crashes by `python -m tests.sweep` on a sample of its points.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from benchmarks import harness, residues
from fedmem import erasure
from fedmem.anchor.presets import Shape, new_anchor
from fedmem.device.private_fetch import private_sources
from fedmem.erasure import Scope
from fedmem.memory.attach import attach
from fedmem.memory.block import new_blocks
from fedmem.memory.sites import spec_for
from fedmem.privacy.dpsgd import train_block
from fedmem.privacy.gradients import PrivateSequences
from fedmem.privacy.ledger import Meter
from fedmem.privacy.plan import PrivacyPlan
from fedmem.privacy.stream import PrivacyStream
from fedmem.storage.canonical import canonical_json
from fedmem.storage.ids import new_id
from fedmem.training.loop import Trainer
from fedmem.training.packing import Packed
from fedmem.training.settings import Settings
from fedmem.vault.crypto import container
from fedmem.vault.store import topics
from fedmem.vault.store.database import BlockRow
from fedmem.vault.vault import NewRecord, Vault

ANCHOR, VOCABULARY, WIDTH = Shape(layers=4, d_model=256, ffn=768, heads=8), 4096, 64
STEPS, BATCH, LENGTH = 2000, 16, 256  # of `fedmem anchor train`
RECORDS, RECORD_LENGTH = 400, 128  # of the default privacy plan
FEW, MANY, TOPIC = 100, 10_000, "health"
ERASE_LIMIT_MS, GROWTH_LIMIT, RETRAIN_LIMIT, OPEN_LIMIT_MS = 100.0, 1.3, 1000.0, 5.0

Seconds = dict[str, np.ndarray]


def filled(folder: Path, count: int) -> Vault:
    """Return a vault of `count` small blocks, each with its own topic. It has no runs, which would take minutes."""
    vault, rows = Vault.create(folder, subject="benchmark"), bytes(1024)
    keys = {new_id(): container.new_key() for _ in range(count)}
    named = {block: f"topic {number}" for number, block in enumerate(keys)}
    cells = []
    for block, key in keys.items():
        facts = {"topic": named[block], "release": "r", "version": 1, "layers": 1, "width": 1, "d_model": 1}
        facts |= {"run_id": new_id(), "bytes": len(rows), "created": time.time()}
        sealed = container.seal(key, {"kind": "block"}, rows, identity=vault.core.identity("block", block))
        vault.core.block_file(block).write_bytes(sealed)
        sealed = vault.core.seal("block-facts", block, key, canonical_json(facts))
        cells.append(BlockRow(id=block, state="live", created=time.time(), sealed=sealed))
    with vault.core.writing():
        topics.rewrite(vault.core.table, add=keys, topics=named)
        with vault.core.database.session() as session:
            session.add_all(cells)
    return vault


def give(vault: Vault, rows: bytes) -> str:
    """Add ten records and a block of the topic. Return the block's id."""
    vectors = np.random.default_rng(0).standard_normal((10, 128)).astype(np.float32)
    vault.add_records([NewRecord(f"visit {i}", TOPIC, (), vector, "r") for i, vector in enumerate(vectors)])
    run = vault.begin_run(TOPIC, "r", {}, "digest", [], {"sigma": 1.0})
    return vault.finish_run(run, TOPIC, "r", rows, ANCHOR.layers, WIDTH, ANCHOR.d_model).id


def erase(vault: Vault) -> None:
    """Erase a block as `fedmem block delete` does."""
    planned = erasure.plan(vault, Scope.topic(TOPIC))
    erasure.execute(vault, planned, planned.digest)


def rewrite(vault: Vault) -> None:
    """Write the table under a new epoch and read it once, as in an erasure, but erase nothing."""
    with vault.core.writing():
        topics.rewrite(vault.core.table, without=[new_id()], rotate=True)
        vault.core.table.load()


def erasures(vaults: dict[str, Vault], rows: bytes, turns: int) -> Seconds:
    """Return seconds of an erasure, and of its table alone, in each vault; the vaults take turns."""
    seconds = {f"{arm}_{name}": np.zeros(turns) for name in vaults for arm in ("erase", "table")}
    for turn in range(-harness.WARM_UP, turns):
        for name in list(vaults)[:: 1 if turn % 2 else -1]:
            give(vaults[name], rows)
            for arm, work in (("erase", erase), ("table", rewrite)):
                start = time.perf_counter()
                work(vaults[name])
                if turn >= 0:
                    seconds[f"{arm}_{name}"][turn] = time.perf_counter() - start
        harness.progress(f"erasure {turn + 1} of {turns}")
    return seconds


def openings(vault: Vault, rows: bytes, turns: int) -> np.ndarray:
    """Return seconds to open, verify and attach a block, by the path of every answer."""
    model = new_anchor(ANCHOR, VOCABULARY, 0)
    memory, release = attach(model), SimpleNamespace(spec=spec_for(model, "ffn", 1, (WIDTH,)))
    block = vault.block(give(vault, rows))

    def fetch() -> None:
        with memory.using(*private_sources(vault, release, [block])):  # type: ignore[arg-type]
            pass

    return harness.turns({"open": fetch}, turns)["open"]


def anchor_step() -> Callable[[], object]:
    """Return a function that does one step of training the anchor from its start."""
    rng = np.random.default_rng(0)
    tokens_MT = torch.from_numpy(rng.integers(2, VOCABULARY, (BATCH, LENGTH)))
    packed = Packed(tokens_MT, torch.arange(LENGTH).expand_as(tokens_MT), np.arange(BATCH))
    settings = Settings(steps=STEPS, batch=BATCH, lr=3e-3)
    return Trainer(new_anchor(ANCHOR, VOCABULARY, 0), packed, settings, seed=0).step


def block_training(runs: int, steps: int = 2) -> np.ndarray:
    """Return seconds a step of training the block alone under the default plan, as measured in each run."""
    model = new_anchor(ANCHOR, VOCABULARY, 0)
    spec = spec_for(model, "ffn", 1, (WIDTH,))
    tokens_NT = torch.from_numpy(np.random.default_rng(0).integers(2, VOCABULARY, (RECORDS, RECORD_LENGTH)))
    plan = PrivacyPlan.small(record_cap=10_000, noise_multiplier=1.0)
    plan = PrivacyPlan(**{**plan.to_dict(), "steps": steps})
    data = PrivateSequences(tokens_NT, np.arange(RECORDS), RECORDS)
    start_X = new_blocks(spec, 1, 1, torch.Generator().manual_seed(0))[0]
    memory, seconds = attach(model), np.zeros(runs)
    for run in range(runs):
        stream, meter = PrivacyStream(bytes(32), b"benchmark"), Meter(plan.spend)
        start = time.perf_counter()
        train_block(model, memory, spec, start_X, data, plan, stream, meter=meter)
        seconds[run] = (time.perf_counter() - start) / steps
        harness.progress(f"training of a block {run + 1} of {runs}")
    return seconds


def crashes(points: int) -> dict[str, Any]:
    """Run a sample of the crash sweep."""
    command = [sys.executable, "-m", "tests.sweep", "--points", str(points)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    data: dict[str, Any] = json.loads(done.stdout)["data"]
    return {name: data[name] for name in ("points", "bad")}


def residue(folder: Path) -> dict[str, Any]:
    """Return notes that are found after their deletion, by store."""
    counted = {name: residues.counts(name, folder / name) for name in residues.installed()}
    return {
        "residue": {name: count["open"] for name, count in counted.items()},
        "residue_once_closed": {name: count["closed"] for name, count in counted.items()},
        "notes_deleted": residues.NOTES,
    }


def measured(folder: Path, quick: bool, few: int = FEW, many: int = MANY) -> dict[str, Any]:
    """Return all figures but those of the crash sweep."""
    rows_X = torch.randn(ANCHOR.layers * 3 * WIDTH * ANCHOR.d_model, generator=torch.Generator().manual_seed(0))
    rows = save({"rows": rows_X})
    with residues.home(folder / "home"):
        vaults = {"few": filled(folder / "few", few), "many": filled(folder / "many", many)}
        seconds = erasures(vaults, rows, 10 if quick else 60)
        opening = openings(vaults["few"], rows, 50 if quick else 300)
        for vault in vaults.values():
            vault.close()
    step = harness.turns({"step": anchor_step()}, 4 if quick else 12)["step"]
    data = figures(seconds, opening, step, block_training(3 if quick else 8)) | residue(folder / "stores")
    return data | {"block_bytes": len(rows), "blocks": {"few": few, "many": many}}


def figures(seconds: Seconds, opening: np.ndarray, step: np.ndarray, block: np.ndarray) -> dict[str, Any]:
    """Return the medians and ratios with their intervals."""
    one = float(np.median(seconds["erase_few"]))
    found = {
        "erase_ms_beside_fsync": centre(1000 * seconds["erase_few"]),
        "open_verify_attach_ms": centre(1000 * opening),
        "ratio.blocks_10000_over_100": growth(seconds),
        "ratio.retrain_over_erase": centre(PrivacyPlan.small(record_cap=1).steps * block / one),
        "ratio.retrain_anchor_over_erase": centre(STEPS * step / one),
    }
    data: dict[str, Any] = {"ratio": {}, "interval": {name: interval for name, (_, interval) in found.items()}}
    for name, (value, _) in found.items():
        within, _, last = name.rpartition(".")
        (data[within] if within else data)[last] = value
    return data | {"ms": {name: 1000 * float(np.median(values)) for name, values in seconds.items()}}


def growth(seconds: Seconds) -> tuple[float, list[float]]:
    """Return the time of an erasure beside its table, many blocks over few: ratio of medians, and its 95 % interval.

    The interval is by bootstrap (seeded).

    A turn's own difference may be below 0 on a busy machine, so ratios of turns have no useful median.
    """

    def own(picked: np.ndarray) -> float:
        middle = {name: np.median(values[picked]) for name, values in seconds.items()}
        return float((middle["erase_many"] - middle["table_many"]) / (middle["erase_few"] - middle["table_few"]))

    turns = len(seconds["erase_few"])
    draws = np.random.default_rng(0).integers(0, turns, (2000, turns))
    low, high = np.quantile([own(picked) for picked in draws], [0.025, 0.975])
    return own(np.arange(turns)), [float(low), float(high)]


def centre(values: np.ndarray) -> tuple[float, list[float]]:
    """Return the median, and its 95 % interval by bootstrap (seeded)."""
    return harness.ratio(values, np.ones_like(values))


def checks(data: dict[str, Any]) -> dict[str, bool]:
    """Return, for each promise, True if it holds."""
    left = data["residue"] | {f"{name}, closed": count for name, count in data["residue_once_closed"].items()}
    return {
        "erase_within_limit": data["erase_ms_beside_fsync"] < ERASE_LIMIT_MS,
        "growth_within_limit": data["ratio"]["blocks_10000_over_100"] <= GROWTH_LIMIT,
        "faster_than_retraining": data["ratio"]["retrain_over_erase"] >= RETRAIN_LIMIT,
        "open_within_limit": data["open_verify_attach_ms"] < OPEN_LIMIT_MS,
        "nothing_left": left["fedmem"] == left["fedmem, closed"] == 0,
        "planted_copy_found": left["planted_copy"] > 0,
        "no_bad_crash": data["crash"]["bad"] == 0,
    }


def memory() -> str | None:
    """Return a folder in memory, if the system has one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108


def main() -> None:
    """Measure. Exit with 12 if a limit or a check does not hold."""
    arguments = harness.options(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="erase-", dir=memory()) as folder:
        data = measured(Path(folder), arguments.quick)
    data |= {
        "crash": crashes(200 if arguments.quick else 1000),
        "machine": harness.machine(),
        "in_memory": bool(memory()),
    }
    data["checks"] = checks(data)
    harness.emit("erase", data, arguments)
    if not all(data["checks"].values()):
        raise SystemExit(12)


if __name__ == "__main__":
    main()
