"""Restore the newest backup of a run somewhere else, and judge it by the calls up to its time.

faults = judge_backup(base, calls)
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedmem.errors import FedmemError
from fedmem.vault.backup import restoring
from fedmem.vault.vault import Vault
from tests.stress import checker, content
from tests.stress.checker import Faults
from tests.stress.journal import FAILED, OK, UNKNOWN, Call


def judge_backup(base: Path, calls: Sequence[Call]) -> Faults:
    """Return the faults of the newest backup; none if there is no backup, or if an erasure retired it.

    Changes `base`: the restored vault takes the place of the vault.
    """
    newest = max((call for call in calls if call.op == "backup" and call.outcome == OK), key=_end, default=None)
    if newest is None:
        return Faults()
    place = base / "copies" / newest.asked["place"]
    if not place.exists():
        return Faults() if _is_retired(newest, calls) else Faults(lost=(f"backup {place.name} is missing",))
    shutil.rmtree(base / "vault")
    os.environ["FEDMEM_HOME"] = str(base / "home")
    try:
        restoring.restore(place, base / "vault", subject=content.SUBJECT)
        with Vault.open(base / "vault", subject=content.SUBJECT) as vault:
            stored = checker.read_vault(vault)
    except FedmemError as error:
        return Faults(lost=(f"backup {place.name} cannot be restored: {type(error).__name__}: {error}",))
    return checker.judge(until(calls, newest.begun), stored, until(calls, newest.ended))


def until(calls: Sequence[Call], time: float) -> list[Call]:
    """Return the calls that were asked before a time, as their journals were then."""
    return [
        call if call.ended <= time else replace(call, outcome=UNKNOWN, result={}, ended=float("inf"))
        for call in calls
        if call.begun <= time
    ]


def _end(call: Call) -> float:
    return call.ended


def _is_retired(backup: Call, calls: Sequence[Call]) -> bool:
    """Return True if an erasure may have retired a backup: one that ended, or was resumed, after the backup began."""
    return any(call.ended > backup.begun for call in calls if _may_erase(call))


def _may_erase(call: Call) -> bool:
    is_erasure = call.op == "erase" and (call.outcome != FAILED or checker.is_partial(call))
    return is_erasure or bool(call.result.get("erasures"))
