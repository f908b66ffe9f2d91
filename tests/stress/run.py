"""Run the stress: a vault, workers that use it, kills, and the check of what is left.

data = stressed(folder, seconds=20, seed=1)
"""

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from fedmem import erasure
from fedmem.errors import FedmemError
from fedmem.vault.vault import StaleReader, Vault
from tests.stress import checker, content
from tests.stress.actions import Writer
from tests.stress.checker import Faults
from tests.stress.fleet import Fleet, in_child
from tests.stress.journal import FAILED, OK, Call, Journal, read_all
from tests.stress.restored import judge_backup

KILLS_PER_SECOND, STOPS_PER_SECOND, CHECK_EVERY = 1.4, 0.2, 45.0
SHOWN = 20
WRITES = ("open", "add", "begin", "checkpoint", "finish", "erase", "resume", "backup", "kit")
DEEP = 3  # erasures that are verified deep at the end


def stressed(
    base: Path,
    seconds: float,
    seed: int,
    *,
    processes: int = 8,
    threads: int = 4,
    timeout: float = 30.0,
    forks: float = 0.005,
) -> dict[str, Any]:
    """Run for some seconds in the folder `base`, and return the figures."""
    begun, draw = time.monotonic(), Random(seed)
    os.environ["FEDMEM_HOME"] = str(base / "home")
    for name in ("journals", "copies"):
        (base / name).mkdir(parents=True)
    in_child(lambda: begin(base, Random(seed)))
    fleet = Fleet(base, draw, processes, threads, timeout, forks)
    faults = _disturbed(fleet, begun + seconds, draw)
    hung = fleet.end(timeout + 30.0)
    final = in_child(lambda: checked_at_end(base))
    faults += Faults(*map(tuple, final.pop("faults")))
    calls = read_all(base / "journals")
    faults += checker.judge_answers(calls)
    faults += Faults(*map(tuple, in_child(lambda: judge_backup(base, calls).parts())))
    data = figures(calls, faults, fleet, hung) | final
    data |= {"timeout_s": timeout, "seed": seed, "processes": processes, "threads": threads}
    return data | {"seconds": round(time.monotonic() - begun, 1), "bad": bad(data)}


def begin(base: Path, draw: Random) -> None:
    """Create the vault, with records in most topics, and erase some, so that the first workers find something."""
    with Vault.create(base / "vault", subject=content.SUBJECT) as vault:
        writer = Writer(vault, Journal(base / "journals"), draw, base)
        for work in (*[writer.add_batch] * 2 * len(content.TOPICS), writer.learn, writer.erase):
            work()


def _disturbed(fleet: Fleet, until: float, draw: Random) -> Faults:
    """Kill and stop workers, and check the vault at intervals, until a time."""
    faults, check_at = Faults(), time.monotonic() + CHECK_EVERY
    kill_at, stop_at = time.monotonic() + 1.0, time.monotonic() + 1.0
    while (now := time.monotonic()) < until:
        if now > kill_at:
            fleet.kill()
            kill_at += draw.expovariate(KILLS_PER_SECOND)
        if now > stop_at:
            fleet.stop()
            stop_at += draw.expovariate(STOPS_PER_SECOND)
        if now > check_at:
            faults += Faults(*map(tuple, in_child(lambda: checked_on_the_way(fleet.base).parts())))
            check_at = time.monotonic() + CHECK_EVERY
        fleet.tend()
        time.sleep(0.01)
    return faults


def checked_on_the_way(base: Path) -> Faults:
    """Return the faults of the vault while workers use it."""
    for _ in range(50):
        before = read_all(base / "journals")
        try:
            with Vault.open(base / "vault", subject=content.SUBJECT, write=False) as vault:
                stored = checker.read_vault(vault)
        except StaleReader:  # an erasure came in between
            continue
        return checker.judge(before, stored, read_all(base / "journals"))
    return Faults()


def checked_at_end(base: Path) -> dict[str, Any]:
    """Open the vault after the run, resume erasures, and return faults and counts of what is there."""
    calls, problems = read_all(base / "journals"), []
    stored, states, faults = None, [], Faults()
    try:
        with Vault.open(base / "vault", subject=content.SUBJECT) as vault:
            erasure.resume(vault)
            stored, states = checker.read_vault(vault), erasure.status(vault)
            problems = list(_unclean(vault, states))
        faults = checker.judge(calls, stored, calls, is_final=True)
    except FedmemError as error:
        problems.append(f"the vault cannot be read: {type(error).__name__}: {error}")
    plain, remains = plaintext(base), remains_of(base, calls)
    faults += Faults(erased_left=(*plain, *remains))
    completed = sum(status.state == "completed" for status in states)
    return {"faults": faults.parts(), "erasures": completed, "plaintext": len(plain), "unclean": problems,
            "records_at_end": len(stored.records) if stored else 0}  # fmt: skip


def _unclean(vault: Vault, states: Sequence[erasure.Status]) -> Iterator[str]:
    """Yield a sentence for each erasure that is neither ended nor clean, and for keys that should be gone."""
    yield from (f"an erasure is {status.state}" for status in states if status.state not in ("completed", "failed"))
    completed = [status.id for status in states if status.state == "completed"]
    for erasure_id in completed[-DEEP:]:
        yield from (f"erasure of {name}: {lines[0]}" for name, lines in _remnants(vault, erasure_id).items() if lines)
    yield from (f"erasure {item} is not clean" for item in completed if not erasure.verify(vault, item).is_clean)


def _remnants(vault: Vault, erasure_id: str) -> dict[str, list[str]]:
    return erasure.verify(vault, erasure_id, deep=True).remnants


def plaintext(base: Path) -> list[str]:
    """Return a sentence for each file of vault, keys and copies that holds a canary in clear."""
    files = (path for name in ("vault", "home", "copies") for path in (base / name).rglob("*") if path.is_file())
    return [f"{path.relative_to(base)} holds text in clear" for path in files if _holds_canary(path.read_bytes())]


def _holds_canary(data: bytes) -> bool:
    return any(canary in data for canary in content.CANARIES)


def remains_of(base: Path, calls: Sequence[Call]) -> list[str]:
    """Return a sentence for each ciphertext of a completed erasure that is in a file of the vault or of a copy."""
    erased = [call for call in calls if call.op == "erase" and call.outcome == OK]
    needles = {salt: bytes.fromhex(salt) for call in erased for salt in call.asked["salts"]}
    hits = (
        [hit for name in ("vault", "copies") for hit in erasure.residue.scan(base / name, needles)] if needles else []
    )
    return [f"ciphertext of an erased item is in {hit.file}" for hit in hits]


def figures(calls: Sequence[Call], faults: Faults, fleet: Fleet, hung: Sequence[str]) -> dict[str, Any]:
    """Return the counts of a run."""
    failed = [call.result for call in calls if call.outcome == FAILED]
    typed = Counter(result["type"] for result in failed if result["typed"])
    untyped = [f"{result['type']} at {result['place']}" for result in failed if not result["typed"]] + fleet.crashes
    alarms = [f"{result['type']} at {result['place']}" for result in failed if result["type"] in checker.ALARMS]
    count = Counter(call.op for call in calls if call.outcome == OK)
    longest = max((call.seconds for call in calls if call.op in WRITES), default=0.0)
    sentences = {name: list(lines)[:SHOWN] for name, lines in asdict(faults).items() if lines}
    return {
        "acknowledged": len(checker.acknowledged(calls)), "writes": sum(count[op] for op in WRITES[1:]),
        "erased": len(checker.covered(calls) & checker.acknowledged(calls).keys()),
        **{name: len(lines) for name, lines in asdict(faults).items()},
        "untyped_errors": len(untyped), "typed_errors": dict(typed.most_common()), "false_alarms": len(alarms),
        "kills": fleet.kills, "stops": fleet.stops, "started": fleet.started, "namespaces": fleet.has_namespaces,
        "forks": sum(call.op == "inherited" for call in calls), "backups": count["backup"], "kits": count["kit"],
        "blocks": count["finish"], "busy": typed["Busy"], "longest_wait_s": round(longest, 2),
        "hung": len(hung), "calls": dict(count.most_common()),
        "faults": sentences | {"untyped": most_common(untyped), "alarms": most_common(alarms), "hung": list(hung)},
    }  # fmt: skip


def most_common(lines: Sequence[str]) -> dict[str, int]:
    """Return the most common lines with their counts."""
    return dict(Counter(lines).most_common(SHOWN))


def bad(data: dict[str, Any]) -> int:
    """Return how many things are wrong; 0 is a good run."""
    names = ("lost", "erased_left", "torn", "unasked", "untyped_errors", "false_alarms", "hung")
    waited = data["longest_wait_s"] > data["timeout_s"] + 5.0
    return sum(data[name] for name in names) + len(data["unclean"]) + waited
