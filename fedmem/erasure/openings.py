"""The opening of a receipt's commitment, sealed in the vault until it is delivered to the person.

Invariants
- It is durable with the journal entry, before anything is destroyed. It is removed only when its delivery is confirmed,
  or when the erasure ends without a receipt.

Guarantees
    One cell of `fedmem.vault.crypto.container` under the ledger's key, which no erasure destroys, bound to the
    erasure's id. While the cell exists, everybody who can open the vault can check a guess of what was erased.
    Afterwards only the person who received the opening can.

    | input | result |
    |---|---|
    | an unknown erasure, or an erasure whose opening is not in the vault | NothingMatched |
    | a changed cell, or a cell of another erasure | VerificationFailed |
    | delivery confirmed twice | no change |

    opening = read(vault, erasure_id)
    confirm_delivery(vault, erasure_id)
"""

from fedmem.erasure import journal
from fedmem.errors import NothingMatched
from fedmem.vault.crypto import container
from fedmem.vault.store.core import Core
from fedmem.vault.vault import Vault

WAITING, DELIVERED, NOT_KEPT = "waiting", "delivered", "not kept"
KIND = "opening"


def seal(core: Core, erasure_id: str, opening: bytes) -> str:
    """Return the opening of an erasure, sealed under the ledger's key.

    Guarantees
        The cell is bound to the vault and to the erasure (see `container`).

    Args:
        core: an open vault.
        erasure_id: id of the erasure, 32 hex digits.
        opening: 32 random bytes.

    Returns:
        The sealed cell, hex.
    """
    return core.seal(KIND, erasure_id, _key(core), opening).hex()


def unseal(core: Core, entry: journal.JournalEntry) -> str:
    """Return the opening of an entry.

    Args:
        core: an open vault.
        entry: the journal entry of the erasure.

    Returns:
        64 hex digits, or "" if the vault does not hold the opening.

    Raises:
        VerificationFailed: the cell was changed.
    """
    if not entry.opening:
        return ""
    sealed, identity = bytes.fromhex(entry.opening), core.identity(KIND, entry.id)
    return container.open_cell(_key(core), sealed, identity=identity).hex()


def state(entry: journal.JournalEntry) -> str:
    """Return `waiting`, `delivered`, `not kept` (an earlier fedmem or a restore), or "" if there is no receipt.

    Args:
        entry: the journal entry of the erasure.
    """
    if entry.opening:
        return WAITING
    if entry.state in journal.WITHOUT_RECEIPT:
        return ""
    return DELIVERED if entry.delivered else NOT_KEPT


def read(vault: Vault, erasure_id: str) -> str:
    """Return the opening of an erasure in hex (32 bytes).

    Args:
        vault: an open vault.
        erasure_id: id of the erasure, 32 hex digits.

    Raises:
        NothingMatched: there is no such erasure, or the vault does not hold its opening.
        VerificationFailed: the cell was changed.
    """
    vault.core.prepare_read()
    entry = journal.read(vault, erasure_id)
    if not entry.opening:
        raise NothingMatched(_reason(state(entry)))
    return unseal(vault.core, entry)


def confirm_delivery(vault: Vault, erasure_id: str) -> None:
    """Remove the sealed opening of an erasure, after it was delivered to the person.

    Args:
        vault: a vault that is open for writing.
        erasure_id: id of the erasure, 32 hex digits.

    Raises:
        NothingMatched: there is no erasure with this id.
        Refused: the vault is open for reading only.
        StorageError, Busy: the opening is still sealed in the vault.
    """
    with vault.core.writing():
        entry = journal.read(vault, erasure_id)
        if entry.opening:
            journal.drop_opening(vault, entry)
            vault.core.database.checkpoint()  # else the cell would stay in the log


def _key(core: Core) -> bytes:
    key: bytes = core.table.keys[core.table.facts["ledger"]]
    return key


def _reason(state: str) -> str:
    if state == DELIVERED:
        return "The opening of this erasure was delivered and is no longer in the vault."
    if state == NOT_KEPT:
        return "The vault never kept this opening: an earlier fedmem ran the erasure, or a backup was restored since."
    return "This erasure was cancelled or failed, so it has no receipt and no opening."
