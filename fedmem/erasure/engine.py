"""Execute an erasure, resume one that was cut, cancel one that has not begun, and say how they stand.

Invariants
- Only what was planned is destroyed: the digest must be the plan's, and the plan must still hold.
- Order (DESIGN §8): journal -> new epoch -> table renamed -> old epoch destroyed -> files unlinked -> rows deleted
  -> readers let go -> checkpoint -> rescan -> receipt. The rename is the point of no return: before it a failure
  leaves the old state, after it the erasure is `partial` and rolls forward.
- `completed` is written only after a clean rescan; anything less raises PartialErasure (I5). A resumed erasure is
  verified deep.
- Executing again after a crash is harmless: every step is idempotent.
- A wish to train a block anew is durable with the journal entry, before anything is destroyed, and is checked against
  the budget before that. Training begins after the receipt; what is cut there, `resume` goes on with.

    planned = plan(vault, Scope.block("health"))
    outcome = execute(vault, planned, planned.digest)
"""

import contextlib
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedmem.erasure import journal, receipt, states
from fedmem.erasure.forgetting import Retrain
from fedmem.erasure.planning import Plan, plan
from fedmem.erasure.verification import FILES, Verification, earlier_epochs, rescan
from fedmem.errors import Busy, FedmemError, PartialErasure, Refused
from fedmem.vault.copies import out_of_reach
from fedmem.vault.ids import new_id
from fedmem.vault.keytable import epoch_name
from fedmem.vault.runs import WANTED
from fedmem.vault.unused import moved
from fedmem.vault.vault import DEVICE_KEY, Learned, Vault

DELETED, TO_BE_RETRAINED = "deleted", "deleted, to be retrained"


@dataclass(frozen=True)
class Outcome:
    """A finished erasure.

    Attributes:
        opening: hex; with the scope it opens the receipt's commitment. Kept nowhere: "" after a resume.
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

    `retraining` is "" where nothing is trained anew, else pending, done, or given up.
    """

    id: str
    state: str
    created: float
    counts: dict[str, int]
    receipt_path: Path | None
    retraining: str = ""


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
    if not hmac.compare_digest(digest, planned.digest):
        raise Refused("The digest is not that of the plan. Plan again, and execute with the digest that it gives.")
    if not hmac.compare_digest(plan(vault, planned.scope, blocks=planned.blocks).digest, planned.digest):
        raise Refused("The vault changed since the plan was made. Plan again; nothing was erased.")
    for wanted in planned.retrain:
        if retrain is None:
            raise Refused("Retraining needs the release that the block belongs to. Give it, or delete the block.")
        retrain.check(vault, wanted)
    opening = secrets.token_bytes(32)
    entry = _begin(vault, planned, receipt.commit(planned.scope, opening), residual)
    outcome = replace(_carry_out(vault, entry), opening=opening.hex())
    return _trained(vault, entry, outcome, retrain)


def resume(vault: Vault, *, retrain: Retrain | None = None) -> list[Outcome]:
    """Finish every erasure that a crash or a failure left unfinished, oldest first, and every retraining that is
    pending where `retrain` is given. Raises as `execute`."""
    done = []
    for entry in journal.read_all(vault):
        if entry.state in states.UNFINISHED:
            outcome = _carry_out(vault, entry)
        elif retrain is None or _retraining(vault, entry) != "pending":
            continue
        else:
            outcome = Outcome(entry.id, entry.state, _receipt_path(vault, entry))
        done.append(outcome if retrain is None else _trained(vault, entry, outcome, retrain))
    return done


def cancel(vault: Vault, erasure_id: str) -> Status:
    """Cancel an erasure that has not begun, or give up a retraining that has not; what is destroyed stays so.

    Raises NothingMatched for an unknown id, Refused where there is nothing left to cancel.
    """
    entry = journal.read(vault, erasure_id)
    if entry.state == states.PENDING:
        entry = journal.move(vault, entry, states.CANCELLED)
    elif entry.state in states.UNFINISHED or not any(run.state == WANTED for run in vault.runs_by_id(entry.runs)):
        raise Refused("Only a pending erasure, or a retraining that has not begun, can be cancelled.")
    vault.unwant_runs(entry.runs)
    return _status(vault, entry)


def status(vault: Vault) -> list[Status]:
    """All erasures of the vault, oldest first."""
    return [_status(vault, entry) for entry in journal.read_all(vault)]


def _begin(vault: Vault, planned: Plan, commitment: str, residual: Mapping[str, Any] | None) -> journal.Entry:
    """Make the erasure and its wishes durable, in one transaction."""
    wishes = [(wanted, wanted.wish()) for wanted in planned.retrain]
    shared = dict(residual) if residual is not None else _residual(planned)
    rows = _outcomes(planned, {block: wish for wanted, wish in wishes for block in wanted.blocks})
    facts = planned.digest, commitment, vault.generation, planned.ids, planned.items, shared, rows
    entry = journal.new(new_id(), *facts)
    vault.want_runs([wish for _, wish in wishes], lambda session: journal.add(session, entry))
    return entry


def _outcomes(planned: Plan, wishes: Mapping[str, Learned]) -> tuple[dict[str, str], ...]:
    rows = []
    for block in planned.deleted:
        row = {"id": block, "outcome": DELETED}
        if (wish := wishes.get(block)) is not None:
            row |= {"outcome": TO_BE_RETRAINED, "successor": wish.block_id, "run": wish.id}
        rows.append(row)
    return tuple(rows)


def _carry_out(vault: Vault, entry: journal.Entry) -> Outcome:
    again = entry.state != states.PENDING
    try:
        with vault.core.writing():
            entry = journal.move(vault, entry, states.IN_PROGRESS)
            checked = _destroy(vault, entry, again)
            if checked.clean:
                path = _write_receipt(vault, entry, checked)
                return Outcome(entry.id, states.COMPLETED, path)
    except FedmemError as error:
        raise _ended(vault, entry, error) from error
    raise _ended(vault, entry, PartialErasure("The rescan still found something."))


def _destroy(vault: Vault, entry: journal.Entry, again: bool) -> Verification:
    for store in vault.stores:
        store.erase(entry.ids)
    scattered = moved(vault.core.files.read(vault.root / "vault.db-wal"))
    _checkpoint(vault)
    for epoch in earlier_epochs(vault) if again else ():  # a copy of an old slot came back
        vault.core.keystore.destroy(epoch_name(epoch))
    # After a cut the log no longer tells what was moved, so every byte is looked at.
    if scattered or (again and rescan(vault, entry, deep=True).found[FILES]):
        vault.core.database.vacuum()
        _checkpoint(vault)
    return rescan(vault, entry, deep=again)


def _checkpoint(vault: Vault) -> None:
    if not vault.core.database.checkpoint():
        raise Busy("A reader keeps the vault's log in use.")


def _write_receipt(vault: Vault, entry: journal.Entry, checked: Verification) -> Path:
    # In the order of completion: an erasure that was resumed may have begun before the one that ended last.
    ended = [event.payload["erasure"] for event in vault.ledger.events() if event.kind == "erased"]
    previous = journal.read(vault, ended[-1]).receipt if ended else ""
    content = receipt.statement(
        vault.id, entry, vault.stores, checked, previous, blocks=entry.blocks, not_covered=_copies(vault)
    )
    data = receipt.sign(content, vault.core.keystore.load(DEVICE_KEY))
    path = _receipt_path(vault, entry)
    vault.core.files.replace(path, data)
    journal.move(vault, entry, states.COMPLETED, receipt=hashlib.sha256(data).hexdigest())
    return path


def _copies(vault: Vault) -> list[str]:
    return [
        f"backup or recovery kit {item}, which was made before and is out of reach" for item in out_of_reach(vault.core)
    ]


def _trained(vault: Vault, entry: journal.Entry, outcome: Outcome, retrain: Retrain | None) -> Outcome:
    """Train what the erasure wants trained anew and is not yet."""
    if retrain is None:
        return outcome
    try:
        wanted = [run for run in vault.runs_by_id(entry.runs) if run.state in (WANTED, "open")]
        return replace(outcome, retrained=tuple(retrain.train(vault, run) for run in wanted))
    except FedmemError as error:
        raise PartialErasure(
            "What was to be erased is gone and the receipt is signed, but the block is not trained anew: "
            f"{error} `fedmem erase resume` with the release goes on; `fedmem erase cancel` leaves the block deleted."
        ) from error


def _retraining(vault: Vault, entry: journal.Entry) -> str:
    if not entry.runs or entry.state in (states.FAILED, states.CANCELLED):
        return ""
    known = {run.id: run.state for run in vault.runs_by_id(entry.runs)}
    found = {known.get(run, "gone") for run in entry.runs}
    if found & {WANTED, "open", "finishing"}:
        return "pending"
    return "done" if found == {"finished"} else "given up"


def _ended(vault: Vault, entry: journal.Entry, error: FedmemError) -> FedmemError:
    """Write how a failed attempt ended, as far as the disk allows, and what to raise for it."""
    begun = _begun(vault, entry)
    if entry.state == states.IN_PROGRESS:
        with contextlib.suppress(FedmemError):
            journal.move(vault, entry, states.PARTIAL if begun else states.FAILED)
    if not begun:
        with contextlib.suppress(FedmemError):
            vault.unwant_runs(entry.runs)
        return error
    return PartialErasure(
        "The keys are destroyed, but the erasure is not finished: close other programs that use this vault, "
        "free some disk space, and run `fedmem erase resume`."
    )


def _begun(vault: Vault, entry: journal.Entry) -> bool:
    """Whether the point of no return may be behind us; a disk that does not answer counts as yes."""
    try:
        on_disk = vault.core.table.peek()[1]
    except FedmemError:
        return True
    return on_disk > entry.generation or not vault.stores[0].enumerate(entry.ids)


def _receipt_path(vault: Vault, entry: journal.Entry) -> Path:
    return vault.root / "receipts" / f"{entry.id}.dsse.json"


def _status(vault: Vault, entry: journal.Entry) -> Status:
    kinds = {(item.id, item.kind) for item in entry.items}
    counts = {kind: sum(k == kind for _, k in kinds) for kind in sorted({kind for _, kind in kinds})}
    path = _receipt_path(vault, entry) if entry.state == states.COMPLETED else None
    return Status(entry.id, entry.state, entry.created, counts, path, _retraining(vault, entry))


def _residual(planned: Plan) -> dict[str, Any]:
    if planned.shared:
        reason = "shareable records may have taken part in federated rounds; see the federation's ledger"
        return {"epsilon": None, "reason": reason}
    return {"epsilon": 0.0, "reason": "nothing of this scope ever left the vault"}
