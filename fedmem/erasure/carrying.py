"""Carry an erasure out that its journal entry names: destroy, look again, sign.

Invariants
- Order (docs/design.md, §8): journal -> new epoch -> table renamed -> old epoch destroyed -> files unlinked
  -> rows deleted -> readers let go -> checkpoint -> rescan -> receipt. The rename is the point of no return: before
  it a failure leaves the old state, after it the erasure is `partial` and rolls forward.
- `completed` is written only after a clean rescan; anything less raises PartialErasure (I5). A resumed erasure is
  verified deep.
- Carrying out again after a crash is harmless: every step is idempotent.
- Receipts follow each other in the order in which erasures ended.

    path = carry_out(vault, entry)
"""

import contextlib
from pathlib import Path

from fedmem.erasure import journal, receipt, states
from fedmem.erasure.verification import FILES, Verification, earlier_epochs, rescan
from fedmem.errors import Busy, FedmemError, PartialErasure
from fedmem.storage.canonical import digest
from fedmem.vault.backup.backup_registry import out_of_reach
from fedmem.vault.crypto.key_table import epoch_name
from fedmem.vault.opening import DEVICE_KEY
from fedmem.vault.store.core import serialised
from fedmem.vault.store.wal_remnants import has_moved_cells
from fedmem.vault.vault import Vault


@serialised
def carry_out(vault: Vault, entry: journal.JournalEntry) -> Path:
    """Take an erasure to its end; where its receipt lies.

    Raises PartialErasure: begun and not finished. StorageError, KeystoreError, Busy: nothing was destroyed.
    """
    again = entry.state != states.PENDING
    try:
        with vault.core.writing():
            entry = journal.move(vault, entry, states.IN_PROGRESS)
            checked = _destroy(vault, entry, again)
            if checked.clean:
                return _write_receipt(vault, entry, checked)
    except FedmemError as error:
        raise _ended(vault, entry, error) from error
    raise _ended(vault, entry, PartialErasure("The rescan still found something."))


def receipt_path(vault: Vault, entry: journal.JournalEntry) -> Path:
    """Where the receipt of an erasure lies once it is completed."""
    return vault.root / "receipts" / f"{entry.id}.dsse.json"


def _destroy(vault: Vault, entry: journal.JournalEntry, again: bool) -> Verification:
    for store in vault.stores:
        store.erase(entry.ids)
    scattered = has_moved_cells(vault.core.files.read(vault.root / "vault.db-wal"))
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


def _write_receipt(vault: Vault, entry: journal.JournalEntry, checked: Verification) -> Path:
    # In the order of completion: an erasure that was resumed may have begun before the one that ended last.
    ended = [event.payload["erasure"] for event in vault.ledger.events() if event.kind == "erased"]
    previous = journal.read(vault, ended[-1]).receipt if ended else ""
    content = receipt.statement(
        vault.id, entry, vault.stores, checked, previous, blocks=entry.blocks, not_covered=_copies(vault)
    )
    data = receipt.sign(content, vault.core.keystore.load(DEVICE_KEY))
    path = receipt_path(vault, entry)
    vault.core.files.replace(path, data)
    journal.move(vault, entry, states.COMPLETED, receipt=digest(data))
    return path


def _copies(vault: Vault) -> list[str]:
    return [
        f"backup or recovery kit {item}, which was made before and is out of reach" for item in out_of_reach(vault.core)
    ]


def _ended(vault: Vault, entry: journal.JournalEntry, error: FedmemError) -> FedmemError:
    """Write how a failed attempt ended, as far as the disk allows, and what to raise for it."""
    begun = _begun(vault, entry)
    if entry.state == states.IN_PROGRESS:
        with contextlib.suppress(FedmemError):
            journal.move(vault, entry, states.PARTIAL if begun else states.FAILED)
    if not begun:
        with contextlib.suppress(FedmemError):
            vault.drop_planned_runs(entry.runs)
        return error
    return PartialErasure(
        "The keys are destroyed, but the erasure is not finished: close other programs that use this vault, "
        "free some disk space, and run `fedmem erase resume`."
    )


def _begun(vault: Vault, entry: journal.JournalEntry) -> bool:
    """Whether the point of no return may be behind us; a disk that does not answer counts as yes."""
    try:
        on_disk = vault.core.table.peek()[1]
    except FedmemError:
        return True
    return on_disk > entry.generation or not vault.stores[0].enumerate(entry.ids)
