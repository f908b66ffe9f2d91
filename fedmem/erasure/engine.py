"""Execute an erasure, resume one that was cut, cancel one that has not begun, and say how they stand.

Invariants
- Only what was planned is destroyed: the digest must be the plan's, and the plan must still hold.
- A wish to train a block anew is durable with the journal entry, before anything is destroyed, and is checked against
  the budget before that. Training begins after the receipt; what is cut there, `resume` goes on with.
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
from fedmem.erasure.carrying import carry_out, receipt_path
from fedmem.erasure.forgetting import Retrain
from fedmem.erasure.planning import Plan, plan
from fedmem.errors import FedmemError, PartialErasure, Refused
from fedmem.storage.ids import new_id
from fedmem.vault.store.core import serialised
from fedmem.vault.store.ledger import PLANNED
from fedmem.vault.vault import RunRecord, Vault

DELETED, TO_BE_RETRAINED = "deleted", "deleted, to be retrained"


@dataclass(frozen=True)
class Outcome:
    """A finished erasure.

    Attributes:
        opening: hex; with the scope it opens the receipt's commitment. The vault keeps it sealed until
            `openings.confirm_delivery`; "" if it was delivered already or an earlier fedmem did not keep it.
        retrained: ids of the blocks that were trained anew.
    """

    id: str
    state: str
    receipt_path: Path
    opening: str = field(default="", repr=False)
    retrained: tuple[str, ...] = ()


@dataclass(frozen=True)
class Status:
    """How an erasure stands; `receipt_path` is None until it is completed.

    `retraining` is "" where nothing is trained anew, else pending, done, or given up. `opening` is the state of the
    opening, as `openings.state` gives it, never its value.
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
    """Destroy what was planned, verify by rescan, sign a receipt, and train anew what the plan says.

    Args:
        digest: the plan's digest, as the person who decided saw it.
        residual: {"epsilon": number or None, "reason": text} of what of the scope was ever shared.
        retrain: trains blocks anew; needed where the plan retrains.

    Raises:
        Refused: the digest is not the plan's, or the vault changed since, or nobody is there to retrain.
        BudgetExceeded: a block cannot be trained anew; nothing was destroyed. PartialErasure: begun and not finished;
        `resume` goes on. StorageError, KeystoreError: nothing was destroyed.
    """
    outcome, entry = _executed(vault, planned, digest, residual, retrain)
    return _trained(vault, entry, outcome, retrain)


@serialised
def _executed(
    vault: Vault, planned: Plan, digest: str, residual: Mapping[str, Any] | None, retrain: Retrain | None
) -> tuple[Outcome, journal.JournalEntry]:
    """Check the plan and carry it out in one step: no other thread changes the vault in between."""
    if not hmac.compare_digest(digest, planned.digest):
        raise Refused("The digest is not that of the plan. Plan again, and execute with the digest that it gives.")
    if not hmac.compare_digest(plan(vault, planned.scope, blocks=planned.blocks).digest, planned.digest):
        raise Refused("The vault changed since the plan was made. Plan again; nothing was erased.")
    for wanted in planned.retrain:
        if retrain is None:
            raise Refused("Retraining needs the release that the block belongs to. Give it, or delete the block.")
        retrain.check(vault, wanted)
    opening = secrets.token_bytes(32)
    entry = _begin(vault, planned, opening, residual)
    return Outcome(entry.id, states.COMPLETED, carry_out(vault, entry), opening.hex()), entry


def resume(vault: Vault, *, retrain: Retrain | None = None) -> list[Outcome]:
    """Finish every erasure that a crash or a failure left unfinished, oldest first, and every retraining that is
    pending where `retrain` is given. Raises as `execute`."""
    done = []
    for entry in journal.read_all(vault):
        if entry.state in states.UNFINISHED:
            outcome = Outcome(entry.id, states.COMPLETED, carry_out(vault, entry), openings.unseal(vault.core, entry))
        elif retrain is None or _retraining(vault, entry) != "pending":
            continue
        else:
            outcome = Outcome(entry.id, entry.state, receipt_path(vault, entry), openings.unseal(vault.core, entry))
        done.append(outcome if retrain is None else _trained(vault, entry, outcome, retrain))
    return done


@serialised
def cancel(vault: Vault, erasure_id: str) -> Status:
    """Cancel an erasure that has not begun, or give up a retraining that has not; what is destroyed stays so.

    Raises NothingMatched for an unknown id, Refused where there is nothing left to cancel.
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
    """All erasures of the vault, oldest first."""
    return [_status(vault, entry) for entry in journal.read_all(vault)]


def _begin(vault: Vault, planned: Plan, opening: bytes, residual: Mapping[str, Any] | None) -> journal.JournalEntry:
    """Make the erasure, its sealed opening and its wishes durable, in one transaction."""
    wishes = [(wanted, wanted.planned_run()) for wanted in planned.retrain]
    shared = dict(residual) if residual is not None else _residual(planned)
    rows = _outcomes(planned, {block: wish for wanted, wish in wishes for block in wanted.blocks})
    erasure_id, commitment = new_id(), receipt.commit(planned.scope, opening)
    facts = planned.digest, commitment, vault.generation, planned.ids, planned.items, shared, rows
    entry = journal.new(erasure_id, *facts, opening=openings.seal(vault.core, erasure_id, opening))
    vault.plan_runs([wish for _, wish in wishes], lambda session: journal.add(session, entry))
    return entry


def _outcomes(planned: Plan, wishes: Mapping[str, RunRecord]) -> tuple[dict[str, str], ...]:
    rows = []
    for block in planned.deleted:
        row = {"id": block, "outcome": DELETED}
        if (wish := wishes.get(block)) is not None:
            row |= {"outcome": TO_BE_RETRAINED, "successor": wish.block_id, "run": wish.id}
        rows.append(row)
    return tuple(rows)


def _trained(vault: Vault, entry: journal.JournalEntry, outcome: Outcome, retrain: Retrain | None) -> Outcome:
    """Train what the erasure wants trained anew and is not yet."""
    if retrain is None:
        return outcome
    try:
        wanted = [run for run in vault.runs_by_id(entry.runs) if run.state in (PLANNED, "open")]
        return replace(outcome, retrained=tuple(retrain.train(vault, run) for run in wanted))
    except FedmemError as error:
        raise PartialErasure(
            "What was to be erased is gone and the receipt is signed, but the block is not trained anew: "
            f"{error} `fedmem erase resume` with the release goes on; `fedmem erase cancel` leaves the block deleted."
        ) from error


def _retraining(vault: Vault, entry: journal.JournalEntry) -> str:
    if not entry.runs or entry.state in (states.FAILED, states.CANCELLED):
        return ""
    known = {run.id: run.state for run in vault.runs_by_id(entry.runs)}
    found = {known.get(run, "gone") for run in entry.runs}
    if found & {PLANNED, "open", "finishing"}:
        return "pending"
    return "done" if found == {"finished"} else "given up"


def _status(vault: Vault, entry: journal.JournalEntry) -> Status:
    kinds = {(item.id, item.kind) for item in entry.items}
    counts = {kind: sum(k == kind for _, k in kinds) for kind in sorted({kind for _, kind in kinds})}
    path = receipt_path(vault, entry) if entry.state == states.COMPLETED else None
    return Status(entry.id, entry.state, entry.created, counts, path, _retraining(vault, entry), openings.state(entry))


def _residual(planned: Plan) -> dict[str, Any]:
    if planned.shared:
        reason = "shareable records may have taken part in federated rounds; see the federation's ledger"
        return {"epsilon": None, "reason": reason}
    return {"epsilon": 0.0, "reason": "nothing of this scope ever left the vault"}
