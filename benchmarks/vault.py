"""A vault as it grows: adding, searching, opening and erasing, `python -m benchmarks.vault`.

Vaults hold 1,000, 5,000 and 20,000 records, and a tenth as many blocks, on a real disk. Flat names are those of the
largest vault; the others stand under `by_records`. With `--quick` the largest holds 2,000 records, written at once.

Times are CPU time of the process, so they do not depend on the speed of syncs. `wall_ms` holds the time by the clock,
with its syncs, and `syncs` their number, as a tracer counts them in a small vault. `ratio` holds the cost over the
least that the same work takes: a search over the product of the same vectors; an addition over one encryption (AES-GCM)
and one inserted row (SQLite, WAL, synchronous=FULL) of the same bytes.

Erasing is measured before any training and, in the largest vault, after 600 of them stand in the privacy ledger. The
whole subject is erased last, with the 600 blocks.
`rss_mb` is the most memory of a process that opens the largest vault, searches, and adds.

`benchmarks.erase` measures the erasure of one block beside retraining, other stores, and crashes; it stays.
"""

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks import harness, residues
from benchmarks.erase import filled
from fedmem import erasure
from fedmem.erasure import Scope
from fedmem.vault.vault import ALL, NewRecord, Vault
from tests.sweep import tracer

SUBJECT, RELEASE, DIMENSIONS = "benchmark", "r", 128
SIZES, QUICK_SIZES, BATCH = (1000, 5000, 20_000), (500, 2000), 20
TRAININGS, TURNS, QUICK_TURNS = 600, 30, 10
LIMITS = {
    "add_ms": 5.0, "search_ms": 20.0, "erase_record_ms": 60.0, "open_ms": 60.0, "erase_subject_s": 2.0,
    "receipt_kb": 200.0, "rss_mb": 150.0,
}  # fmt: skip
LEDGER_LIMIT = 1.25  # an erasure after the trainings over one before them
MEMORY = """
import sys
import numpy as np
from fedmem.vault.vault import NewRecord, Vault
with Vault.open(sys.argv[1], subject=sys.argv[2]) as vault:
    vector = np.ones(int(sys.argv[3]), np.float32)
    vault.search(vector, 5)
    vault.add_records([NewRecord("a note", "area 0", (), vector, "r")])
    vault.search(vector, 5)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""

Turns = dict[str, list[tuple[float, float]]]
"""Name -> (CPU, clock) of each turn, in seconds."""


def new_records(count: int, seed: int) -> list[NewRecord]:
    """Return records of about 100 characters in ten topics, with vectors of length 1."""
    vectors_ND = np.random.default_rng(seed).standard_normal((count, DIMENSIONS)).astype(np.float32)
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    text = "A note of a visit, with a few words about what was said and what is to be done before the next one."
    return [
        NewRecord(f"{text} {seed} {i}", f"area {i % 10}", (0, 1), vector, RELEASE)
        for i, vector in enumerate(vectors_ND)
    ]


def grown(folder: Path, count: int, batch: int) -> Vault:
    """Return a vault with `count` records, added `batch` at a time, and a tenth as many blocks, written at once."""
    vault, records = filled(folder, count // 10), new_records(count, 0)
    for start in range(0, count, batch):
        vault.add_records(records[start : start + batch])
    return vault


def timed(turns: Turns, name: str, work: Callable[[], Any]) -> Any:
    """Do the work, note its CPU time and its time by the clock, and return its result."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = work()
    turns.setdefault(name, []).append((time.process_time() - cpu, time.perf_counter() - clock))
    return result


class Floor:
    """The least that an addition and a search of the same bytes take."""

    def __init__(self, path: Path, vectors_ND: np.ndarray) -> None:
        self._rows = sqlite3.connect(path, isolation_level=None)
        for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "CREATE TABLE t (id TEXT, cell BLOB)"):
            self._rows.execute(statement)
        self._cipher, self._vectors_ND = AESGCM(bytes(32)), vectors_ND

    def add(self, record: NewRecord) -> None:
        """Encrypt a record and insert it."""
        nonce = os.urandom(12)
        cell = self._cipher.encrypt(nonce, record.text.encode() + record.vector.tobytes(), None)
        self._rows.execute("INSERT INTO t VALUES (?, ?)", (nonce.hex(), nonce + cell))

    def search(self, vector_D: np.ndarray) -> np.ndarray:
        """Return the five nearest vectors."""
        return np.argpartition(-(self._vectors_ND @ vector_D), 5)[:5]

    def close(self) -> None:
        """Close the database."""
        self._rows.close()


def usage(vault: Vault, turns: Turns, count: int, floor: Floor) -> None:
    """Time additions and searches, each beside its floor. The first of each only warms up."""
    records = new_records(count + 1, 1)
    for record in records:
        of_turn: Turns = turns if record is not records[0] else {}
        timed(of_turn, "add", lambda: vault.add_records([record]))  # noqa: B023 -- called at once
        timed(of_turn, "floor_add", lambda: floor.add(record))  # noqa: B023
        timed(of_turn, "search_after_add", lambda: vault.search(record.vector, 5))  # noqa: B023
        timed(of_turn, "search", lambda: vault.search(record.vector, 5))  # noqa: B023
        timed(of_turn, "floor_search", lambda: floor.search(record.vector))  # noqa: B023


def openings(root: Path, turns: Turns, count: int) -> None:
    """Time openings for writing and for reading."""
    for _ in range(count):
        for name, write in (("open", True), ("open_to_read", False)):
            timed(turns, name, lambda: Vault.open(root, subject=SUBJECT, write=write)).close()  # noqa: B023


def erase(vault: Vault, scope: Scope) -> erasure.Outcome:
    """Plan and execute an erasure, as the command line does."""
    planned = erasure.plan(vault, scope, blocks="delete" if scope.kind == "record" else None)
    return erasure.execute(vault, planned, planned.digest)


def erasures(vault: Vault, turns: Turns, name: str, count: int) -> None:
    """Time erasures of one record each."""
    for record in vault.records(ALL)[:count]:
        timed(turns, name, lambda: erase(vault, Scope.record(record.id)))  # noqa: B023


def train(vault: Vault, count: int) -> None:
    """Enter runs and blocks in the ledger; nothing is computed."""
    for number in range(count):
        run = vault.begin_run(f"trained {number % 10}", RELEASE, {"n": number}, "data", [], {"sigma": 1.0})
        vault.finish_run(run, f"trained {number % 10}", RELEASE, bytes(1024), 1, 1, 1)
        harness.progress(f"training {number + 1} of {count}")


def memory_mb(root: Path) -> float:
    """Return the most memory of a process that opens the vault, searches and adds, in MB of 2^20 bytes."""
    command = [sys.executable, "-c", MEMORY, str(root), SUBJECT, str(DIMENSIONS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return int(done.stdout) / 1024


def syncs(folder: Path) -> dict[str, int]:
    """Return how many syncs an addition and the erasure of a record take; empty where nothing can be traced."""
    if tracer.works():
        return {}
    vault = Vault.create(folder, subject=SUBJECT)
    first, *_ = vault.add_records(new_records(2, 2))
    vault.close()
    works: dict[str, Callable[[Vault], object]] = {
        "add": lambda vault: vault.add_records(new_records(1, 3)),
        "erase_record": lambda vault: erase(vault, Scope.record(first)),
    }
    return {name: _syncs_of(folder, work) for name, work in works.items()}


def _syncs_of(folder: Path, work: Callable[[Vault], object]) -> int:
    def child(begin: Callable[[], None], say: Callable[[bytes], None]) -> None:
        with Vault.open(folder, subject=SUBJECT) as vault:
            begin()
            work(vault)
            say(b"done")
            os._exit(0)  # closing the vault would sync again

    done = tracer.trace(child, folder, lambda number, call: None)
    return sum(call.partition(" ")[0] in ("fsync", "fdatasync") for call in done.calls)


def measured(folder: Path, count: int, batch: int, turns_each: int, trainings: int) -> dict[str, Any]:
    """Return the figures of one size."""
    turns: Turns = {}
    vectors_ND = np.stack([record.vector for record in new_records(count, 0)])
    floor = Floor(folder.with_suffix(".db"), vectors_ND)
    harness.progress(f"a vault of {count} records")
    vault = grown(folder, count, batch)
    usage(vault, turns, turns_each, floor)
    erasures(vault, turns, "erase_record", turns_each)
    vault.close()
    openings(folder, turns, turns_each)
    data: dict[str, Any] = {"rss_mb": memory_mb(folder)}
    with Vault.open(folder, subject=SUBJECT) as vault:
        train(vault, trainings)
        if trainings:
            erasures(vault, turns, f"erase_record_{trainings}_trainings", turns_each)
        outcome = timed(turns, "erase_subject", lambda: erase(vault, Scope.subject()))
    floor.close()
    data |= {"receipt_kb": outcome.receipt_path.stat().st_size / 1024, "records": count, "blocks": count // 10}
    return data | figures(turns)


def figures(turns: Turns) -> dict[str, Any]:
    """Return medians: CPU in ms (of the subject in s), the same by the clock, and ratios over the floor."""
    cpu = {name: np.array([pair[0] for pair in pairs]) for name, pairs in turns.items()}
    clock = {name: np.array([pair[1] for pair in pairs]) for name, pairs in turns.items()}
    data: dict[str, Any] = {f"{name}_ms": 1000 * float(np.median(values)) for name, values in cpu.items()}
    data["erase_subject_s"] = data.pop("erase_subject_ms") / 1000
    data["wall_ms"] = {name: 1000 * float(np.median(values)) for name, values in clock.items()}
    pairs = {name: harness.ratio(cpu[name], np.maximum(cpu[f"floor_{name}"], 1e-6)) for name in ("add", "search")}
    return data | {
        "ratio": {name: value for name, (value, _) in pairs.items()},
        "interval": {f"ratio.{name}": interval for name, (_, interval) in pairs.items()},
    }


def checks(data: Mapping[str, Any], trainings: int = TRAININGS) -> dict[str, bool]:
    """Return, for each target, True if it holds."""
    after = data[f"erase_record_{trainings}_trainings_ms"]
    held = {f"{name}_within_limit": data[name] <= limit for name, limit in LIMITS.items()}
    return held | {"erasure_independent_of_the_ledger": after <= LEDGER_LIMIT * data["erase_record_ms"]}


def every_size(folder: Path, sizes: tuple[int, ...], batch: int, turns: int, trainings: int) -> dict[str, Any]:
    """Return the figures: flat those of the largest size, the others by their number of records."""
    with residues.home(folder / "home"):
        of_size = {
            count: measured(folder / f"v{count}", count, batch or count, turns, trainings if count == sizes[-1] else 0)
            for count in sizes
        }
        counted = syncs(folder / "small")
    return of_size.pop(sizes[-1]) | {
        "by_records": {str(count): data for count, data in of_size.items()},
        "syncs": counted,
        "trainings": trainings,
    }


def main() -> None:
    """Measure. Exit with 12 if a target does not hold."""
    arguments = harness.options(__doc__ or "").parse_args()
    sizes, batch, turns = (QUICK_SIZES, 0, QUICK_TURNS) if arguments.quick else (SIZES, BATCH, TURNS)
    with tempfile.TemporaryDirectory(prefix="vault-", dir="/var/tmp") as folder:
        data = every_size(Path(folder), sizes, batch, turns, TRAININGS)
    data["checks"] = checks(data)
    data["machine"] = harness.machine()
    harness.emit("vault", json.loads(json.dumps(data)), arguments)
    if not all(data["checks"].values()):
        raise SystemExit(12)


if __name__ == "__main__":
    main()
