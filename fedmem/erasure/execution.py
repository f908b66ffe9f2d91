"""Execute a journaled erasure: delete, rescan, sign.

Invariants
- Order (docs/design.md, §8): journal -> new epoch -> table renamed -> old epoch destroyed -> files unlinked
  -> rows deleted -> readers gave up -> checkpoint -> rescan -> receipt. The rename is the point of no return: before
  it a failure leaves the old state, after it the erasure is `partial` and rolls forward.
- `completed` is written only after a clean rescan; anything less raises PartialErasure (I5). A resumed erasure is
  verified deep.
- Executing again after a crash is harmless: every step is idempotent.
- Receipts follow each other in the order in which erasures were completed.

    path = execute_entry(vault, entry)
"""

import contextlib
from pathlib import Path

from fedmem.erasure import journal, not_covered, receipt, states
from fedmem.erasure.verification import FILES, Verification, earlier_epochs, rescan
from fedmem.errors import Busy, FedmemError, PartialErasure
from fedmem.storage.canonical import digest
from fedmem.vault.crypto.device_key import DEVICE_KEY, earlier_keys
from fedmem.vault.crypto.sealed_table import epoch_name
from fedmem.vault.store.turns import in_turn
from fedmem.vault.store.wal_remnants import has_moved_cells
from fedmem.vault.vault import Vault


@in_turn
def execute_entry(vault: Vault, entry: journal.JournalEntry) -> Path:
    """Execute an erasure to its end, and return the path of its receipt.

    Args:
        vault: a vault that is open for writing.
        entry: an unfinished entry of its journal.

    Raises:
        PartialErasure: the erasure has begun and is not finished.
        StorageError, KeystoreError, Busy: nothing was destroyed.
        NothingMatched, VerificationFailed: the list of its items is missing or was changed; nothing was changed now.
    """
    is_resumed = entry.state != states.PENDING
    entry = journal.with_items(vault, entry)
    try:
        with vault.core.writing():
            entry = journal.move(vault, entry, states.IN_PROGRESS)
            verification = _destroy(vault, entry, is_resumed)
            if verification.is_clean:
                return _write_receipt(vault, entry, verification)
    except FedmemError as error:
        raise _failure(vault, entry, error) from error
    raise _failure(vault, entry, PartialErasure("The rescan still found something."))


def receipt_path(vault: Vault, entry: journal.JournalEntry) -> Path:
    """Return the path of the receipt of an erasure; the file exists once the erasure is completed.

    Args:
        vault: the vault that ran the erasure.
        entry: the journal entry of the erasure.
    """
    return vault.root / "receipts" / f"{entry.id}.dsse.json"


def _destroy(vault: Vault, entry: journal.JournalEntry, is_resumed: bool) -> Verification:
    for store in vault.stores:
        store.erase(entry.ids)
    have_cells_moved = has_moved_cells(vault.core.files.read(vault.root / "vault.db-wal"))
    _checkpoint(vault)
    for epoch in earlier_epochs(vault) if is_resumed else ():  # a copy of an old slot was put back
        vault.core.keystore.destroy(epoch_name(epoch))
    # After an interruption the log no longer shows which cells moved, so every byte is read.
    if have_cells_moved or (is_resumed and rescan(vault, entry, deep=True).remnants[FILES]):
        vault.core.database.vacuum()
        _checkpoint(vault)
    return rescan(vault, entry, deep=is_resumed)


def _checkpoint(vault: Vault) -> None:
    if not vault.core.database.checkpoint():
        raise Busy("A reader keeps the vault's log in use.")


def _write_receipt(vault: Vault, entry: journal.JournalEntry, verification: Verification) -> Path:
    previous = journal.last_receipt(vault)
    content = receipt.statement(
        vault.id,
        entry,
        vault.stores,
        verification,
        previous,
        blocks=entry.blocks,
        not_covered=not_covered.remaining(vault.core, entry.items),
        earlier_keys=earlier_keys(vault.core.table.facts),
    )
    data = receipt.sign(content, vault.core.keystore.load(DEVICE_KEY))
    path = receipt_path(vault, entry)
    vault.core.files.replace(path, data)
    journal.move(vault, entry, states.COMPLETED, receipt=digest(data))
    return path


def _failure(vault: Vault, entry: journal.JournalEntry, error: FedmemError) -> FedmemError:
    """Record how a failed attempt ended, as far as the disk allows, and return the error to raise."""
    has_begun = _has_begun(vault, entry)
    if entry.state == states.IN_PROGRESS:
        with contextlib.suppress(FedmemError):
            journal.move(vault, entry, states.PARTIAL if has_begun else states.FAILED)
    if not has_begun:
        with contextlib.suppress(FedmemError):
            vault.drop_planned_runs(entry.runs)
        return error
    return PartialErasure(
        "The keys are destroyed, but the erasure is not finished: close other programs that use this vault, "
        "free some disk space, and run `fedmem erase resume`."
    )


def _has_begun(vault: Vault, entry: journal.JournalEntry) -> bool:
    """Return True if the point of no return may be passed. A disk that does not answer counts as passed."""
    try:
        generation_on_disk = vault.core.table.numbers_on_disk()[1]
    except FedmemError:
        return True
    return generation_on_disk > entry.generation or not vault.stores[0].enumerate(entry.ids)
