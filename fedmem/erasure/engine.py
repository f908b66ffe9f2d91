"""Execute an erasure, resume an interrupted one, cancel one that has not begun, and report their states.

Invariants
- Only planned items are destroyed: the digest must be the plan's, and the plan must still hold.
- A planned training run is durable with the journal entry, before anything is destroyed. Its cost is checked against
  the budget before that. The training begins after the receipt; `resume` continues an interrupted one.
- The opening of the receipt's commitment is sealed in the journal entry until its delivery is confirmed.

    planned = plan(vault, Scope.block("health"))
    outcome = execute(vault, planned, planned.digest)
"""

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedmem.erasure import journal, openings, receipt, states
from fedmem.erasure.execution import execute_entry, receipt_path
from fedmem.erasure.forgetting import Retrain
from fedmem.erasure.planning import Plan, still_holds
from fedmem.errors import FedmemError, PartialErasure, Refused
from fedmem.storage.ids import new_id
from fedmem.vault.store import item_list, reserve
from fedmem.vault.store.ledger import PLANNED
from fedmem.vault.store.turns import in_turn, serialised
from fedmem.vault.vault import RunRecord, Vault

DELETED, TO_BE_RETRAINED = "deleted", "deleted, to be retrained"


@dataclass(frozen=True)
class Outcome:
    """A finished erasure.

    Attributes:
        id: random id of the erasure.
        state: its state.
        receipt_path: the file of its receipt.
        opening: hex; with the scope it opens the receipt's commitment. The vault keeps it sealed until
            `openings.confirm_delivery`. "" if it was already delivered, or if an earlier fedmem did not keep it.
        retrained: ids of the blocks that were retrained.
    """

    id: str
    state: str
    receipt_path: Path
    opening: str = field(default="", repr=False)
    retrained: tuple[str, ...] = ()


@dataclass(frozen=True)
class Status:
    """The state of an erasure.

    Attributes:
        id: random id of the erasure.
        state: its state.
        created: seconds since 1970.
        counts: number of its items by kind.
        receipt_path: the file of its receipt; None until it is completed.
        retraining: pending, done or given up; "" if no block is retrained.
        opening: state of the opening, as `openings.state` returns it, never its value.
    """

    id: str
    state: str
    created: float
    counts: dict[str, int]
    receipt_path: Path | None
    retraining: str = ""
    opening: str = ""


def execute(
    vault: Vault,
    planned: Plan,
    digest: str,
    *,
    residual: Mapping[str, Any] | None = None,
    retrain: Retrain | None = None,
) -> Outcome:
    """Destroy the planned items, verify by rescan, sign a receipt, and retrain the blocks that the plan names.

    Args:
        vault: a vault that is open for writing.
        planned: the plan.
        digest: the plan's digest, as the person who decided saw it.
        residual: {"epsilon": number or None, "reason": text} of the part of the scope that was ever shared.
        retrain: retrains blocks; needed if the plan names blocks to retrain.

    Returns:
        The finished erasure.

    Raises:
        Refused: the digest is not the plan's, the vault changed since, or `retrain` is missing.
        BudgetExceeded: a block cannot be retrained; nothing was destroyed.
        PartialErasure: the erasure has begun and is not finished; `resume` continues it.
        StorageError, KeystoreError, Busy: nothing was destroyed.
    """
    outcome, entry = _execute_plan(vault, planned, digest, residual, retrain)
    return _retrain(vault, entry, outcome, retrain)


@in_turn
def _execute_plan(
    vault: Vault, planned: Plan, digest: str, residual: Mapping[str, Any] | None, retrain: Retrain | None
) -> tuple[Outcome, journal.JournalEntry]:
    """Check the plan and execute it in one turn: no other thread or process changes the vault in between."""
    if not hmac.compare_digest(digest, planned.digest):
        raise Refused("The digest is not that of the plan. Plan again, and execute with the digest that it gives.")
    if not still_holds(vault, planned):
        raise Refused("The vault changed since the plan was made. Plan again; nothing was erased.")
    for retraining in planned.retrain:
        if retrain is None:
            raise Refused("Retraining needs the release that the block belongs to. Give it, or delete the block.")
        retrain.check(vault, retraining)
    opening = secrets.token_bytes(32)
    with reserve.released(vault.core):
        entry = _begin(vault, planned, opening, residual)
        return Outcome(entry.id, states.COMPLETED, execute_entry(vault, entry), opening.hex()), entry


def resume(vault: Vault, *, retrain: Retrain | None = None) -> list[Outcome]:
    """Finish every unfinished erasure, oldest first, and every pending retraining if `retrain` is given.

    Args:
        vault: a vault that is open for writing.
        retrain: retrains blocks; without it pending retrainings are left pending.

    Returns:
        The outcomes, oldest erasure first.

    Raises:
        PartialErasure, StorageError, KeystoreError, Busy: as `execute`.
    """
    done = []
    for entry in journal.read_all(vault):
        if entry.state in states.UNFINISHED:
            with reserve.released(vault.core):
                path = execute_entry(vault, entry)
            outcome = Outcome(entry.id, states.COMPLETED, path, openings.unseal(vault.core, entry))
        elif retrain is None or _retraining(vault, entry) != "pending":
            continue
        else:
            outcome = Outcome(entry.id, entry.state, receipt_path(vault, entry), openings.unseal(vault.core, entry))
        done.append(outcome if retrain is None else _retrain(vault, entry, outcome, retrain))
    return done


@in_turn
def cancel(vault: Vault, erasure_id: str) -> Status:
    """Cancel an erasure that has not begun, or a retraining that has not begun. Destroyed items stay destroyed.

    Args:
        vault: a vault that is open for writing.
        erasure_id: id of the erasure, 32 hex digits.

    Returns:
        The new state of the erasure.

    Raises:
        NothingMatched: there is no erasure with this id.
        Refused: there is nothing left to cancel.
    """
    entry = journal.read(vault, erasure_id)
    if entry.state == states.PENDING:
        with vault.core.writing():
            entry = journal.move(vault, entry, states.CANCELLED)
    elif entry.state in states.UNFINISHED or not any(run.state == PLANNED for run in vault.runs_by_id(entry.runs)):
        raise Refused("Only a pending erasure, or a retraining that has not begun, can be cancelled.")
    vault.drop_planned_runs(entry.runs)
    return _status(vault, entry)


@serialised
def status(vault: Vault) -> list[Status]:
    """Return the states of all erasures of the vault, oldest first.

    Args:
        vault: an open vault; reading is enough.
    """
    return [_status(vault, entry) for entry in journal.read_all(vault)]


def _begin(vault: Vault, planned: Plan, opening: bytes, residual: Mapping[str, Any] | None) -> journal.JournalEntry:
    """Write the erasure, its sealed opening and its planned runs, in one transaction; before it, a large list."""
    runs = [(retraining, retraining.planned_run()) for retraining in planned.retrain]
    shared = dict(residual) if residual is not None else _residual(planned)
    rows = _outcomes(planned, {block: run for retraining, run in runs for block in retraining.blocks})
    erasure_id, commitment = new_id(), receipt.commit(planned.scope, opening)
    facts = planned.digest, commitment, vault.generation, planned.ids, planned.items, shared, rows
    with vault.core.writing():
        is_large = len(planned.items) > journal.INLINE_ITEMS
        listed = item_list.write(vault.core, erasure_id, planned.items) if is_large else {}
        entry = journal.new(erasure_id, *facts, opening=openings.seal(vault.core, erasure_id, opening), listed=listed)
        vault.plan_runs([run for _, run in runs], lambda session: journal.add(session, entry))
    return entry


def _outcomes(planned: Plan, planned_runs: Mapping[str, RunRecord]) -> tuple[dict[str, str], ...]:
    rows = []
    for block in planned.deleted:
        row = {"id": block, "outcome": DELETED}
        if (run := planned_runs.get(block)) is not None:
            row |= {"outcome": TO_BE_RETRAINED, "successor": run.block_id, "run": run.id}
        rows.append(row)
    return tuple(rows)


def _retrain(vault: Vault, entry: journal.JournalEntry, outcome: Outcome, retrain: Retrain | None) -> Outcome:
    """Retrain the blocks of an erasure that are not retrained yet."""
    if retrain is None:
        return outcome
    try:
        pending = [run for run in vault.runs_by_id(entry.runs) if run.state in (PLANNED, "open")]
        return replace(outcome, retrained=tuple(retrain.train(vault, run) for run in pending))
    except FedmemError as error:
        raise PartialErasure(
            "The erasure is complete and the receipt is signed, but the block is not trained anew: "
            f"{error} `fedmem erase resume` with the release continues; `fedmem erase cancel` leaves the block deleted."
        ) from error


def _retraining(vault: Vault, entry: journal.JournalEntry) -> str:
    if not entry.runs or entry.state in (states.FAILED, states.CANCELLED):
        return ""
    state_of_run = {run.id: run.state for run in vault.runs_by_id(entry.runs)}
    run_states = {state_of_run.get(run, "deleted") for run in entry.runs}
    if run_states & {PLANNED, "open", "finishing"}:
        return "pending"
    return "done" if run_states == {"finished"} else "given up"


def _status(vault: Vault, entry: journal.JournalEntry) -> Status:
    path = receipt_path(vault, entry) if entry.state == states.COMPLETED else None
    return Status(
        entry.id, entry.state, entry.created, entry.counts, path, _retraining(vault, entry), openings.state(entry)
    )


def _residual(planned: Plan) -> dict[str, Any]:
    if planned.shared:
        reason = "shareable records may have taken part in federated rounds; see the federation's ledger"
        return {"epsilon": None, "reason": reason}
    return {"epsilon": 0.0, "reason": "nothing of this scope ever left the vault"}
