"""Execute an erasure, resume one that was cut, and say how they stand.

Invariants
- Only what was planned is destroyed: the digest must be the plan's, and the plan must still hold.
- Order (DESIGN §8): journal -> new epoch -> table renamed -> old epoch destroyed -> files unlinked -> rows deleted
  -> checkpoint -> rescan -> receipt. The rename is the point of no return: before it a failure leaves the old state,
  after it the erasure is `partial` and rolls forward.
- `completed` is written only after a clean rescan; anything less raises PartialErasure (I5).
- Executing again after a crash is harmless: every step is idempotent.

    planned = plan(vault, Scope.block("health"))
    outcome = execute(vault, planned, planned.digest)
"""

import contextlib
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmem.erasure import journal, receipt, states
from fedmem.erasure.planning import Plan, Scope, plan
from fedmem.erasure.verification import FILES, Verification, rescan
from fedmem.errors import Busy, FedmemError, PartialErasure, Refused
from fedmem.vault.ids import new_id
from fedmem.vault.vault import DEVICE_KEY, Vault


@dataclass(frozen=True)
class Outcome:
    """A finished erasure.

    Attributes:
        opening: hex; with the scope it opens the receipt's commitment. Kept nowhere: "" after a resume.
    """

    id: str
    state: str
    receipt_path: Path
    opening: str = field(default="", repr=False)


@dataclass(frozen=True)
class Status:
    """How an erasure stands; `receipt_path` is None until it is completed."""

    id: str
    state: str
    created: float
    counts: dict[str, int]
    receipt_path: Path | None


def execute(vault: Vault, planned: Plan, digest: str, *, residual: Mapping[str, Any] | None = None) -> Outcome:
    """Destroy what was planned, verify by rescan, and sign a receipt.

    Args:
        digest: the plan's digest, as the person who decided saw it.
        residual: {"epsilon": number or None, "reason": text} of what of the scope was ever shared.

    Raises:
        Refused: the digest is not the plan's, or the vault changed since. PartialErasure: begun and not finished;
        `resume` goes on. StorageError, KeystoreError: nothing was destroyed.
    """
    if not hmac.compare_digest(digest, planned.digest):
        raise Refused("The digest is not that of the plan. Plan again, and execute with the digest that it gives.")
    if not hmac.compare_digest(plan(vault, planned.scope).digest, planned.digest):
        raise Refused("The vault changed since the plan was made. Plan again; nothing was erased.")
    opening = secrets.token_bytes(32)
    commitment = receipt.commit(planned.scope, opening)
    shared = dict(residual) if residual is not None else _residual(planned.scope)
    entry = journal.new(new_id(), planned.digest, commitment, vault.generation, planned.ids, planned.items, shared)
    with vault.core.writing():
        journal.add(vault, entry)
    return _carry_out(vault, entry, opening.hex())


def resume(vault: Vault) -> list[Outcome]:
    """Finish every erasure that a crash or a failure left unfinished, oldest first. Raises as `execute`."""
    return [_carry_out(vault, entry, "") for entry in journal.read_all(vault) if entry.state in states.UNFINISHED]


def status(vault: Vault) -> list[Status]:
    """All erasures of the vault, oldest first."""
    return [_status(vault, entry) for entry in journal.read_all(vault)]


def _carry_out(vault: Vault, entry: journal.Entry, opening: str) -> Outcome:
    try:
        with vault.core.writing():
            entry = journal.move(vault, entry, states.IN_PROGRESS)
            checked = _destroy(vault, entry)
            if checked.clean:
                path = _write_receipt(vault, entry, checked)
                return Outcome(entry.id, states.COMPLETED, path, opening)
    except FedmemError as error:
        raise _ended(vault, entry, error) from error
    raise _ended(vault, entry, PartialErasure("The rescan still found something."))


def _destroy(vault: Vault, entry: journal.Entry) -> Verification:
    for store in vault.stores:
        store.erase(entry.ids)
    _checkpoint(vault)
    checked = rescan(vault, entry)
    if checked.found[FILES]:  # a page that SQLite moved cells out of; rebuild the file
        vault.core.database.vacuum()
        _checkpoint(vault)
        checked = rescan(vault, entry)
    return checked


def _checkpoint(vault: Vault) -> None:
    if not vault.core.database.checkpoint():
        raise Busy("A reader keeps the vault's log in use.")


def _write_receipt(vault: Vault, entry: journal.Entry, checked: Verification) -> Path:
    before = [known for known in journal.read_all(vault) if known.state == states.COMPLETED]
    previous = max(before, key=lambda known: known.generation).receipt if before else ""
    content = receipt.statement(vault.id, entry, vault.stores, checked, previous)
    data = receipt.sign(content, vault.core.keystore.load(DEVICE_KEY))
    path = _receipt_path(vault, entry)
    vault.core.files.replace(path, data)
    journal.move(vault, entry, states.COMPLETED, receipt=hashlib.sha256(data).hexdigest())
    return path


def _ended(vault: Vault, entry: journal.Entry, error: FedmemError) -> FedmemError:
    """Write how a failed attempt ended, as far as the disk allows, and what to raise for it."""
    begun = _begun(vault, entry)
    if entry.state == states.IN_PROGRESS:
        with contextlib.suppress(FedmemError):
            journal.move(vault, entry, states.PARTIAL if begun else states.FAILED)
    if not begun:
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
    return on_disk > entry.generation or not entry.ids & vault.core.table.keys.keys()


def _receipt_path(vault: Vault, entry: journal.Entry) -> Path:
    return vault.root / "receipts" / f"{entry.id}.dsse.json"


def _status(vault: Vault, entry: journal.Entry) -> Status:
    kinds = {(item.id, item.kind) for item in entry.items}
    counts = {kind: sum(k == kind for _, k in kinds) for kind in sorted({kind for _, kind in kinds})}
    path = _receipt_path(vault, entry) if entry.state == states.COMPLETED else None
    return Status(entry.id, entry.state, entry.created, counts, path)


def _residual(scope: Scope) -> dict[str, Any]:
    if scope.kind == "everything":
        reason = "shareable records may have taken part in federated rounds; see the federation's ledger"
        return {"epsilon": None, "reason": reason}
    return {"epsilon": 0.0, "reason": "nothing of this scope ever left the vault"}
