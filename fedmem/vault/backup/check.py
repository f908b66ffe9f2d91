"""Check every part of a vault against the other parts, without a change to the vault.

Invariants
- All checks of opening a vault run here too. In addition each record and block is opened, and each receipt is compared.
- Faults name parts, counts and random ids, never a text or a topic.

    for fault in check(root, subject="ana", ask=None):
        print(fault.part, fault.message)
"""

from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import select

from fedmem.errors import FedmemError, VerificationFailed
from fedmem.storage.canonical import digest
from fedmem.vault import opening
from fedmem.vault.backup.salvage import Fault, Remains, open_remains
from fedmem.vault.crypto.device_key import DEVICE_KEY, public_pem
from fedmem.vault.crypto.keystore import Ask
from fedmem.vault.store import acknowledgement, inventory, item_list, ledger_anchor
from fedmem.vault.store.blocks import BlockStore
from fedmem.vault.store.core import Core
from fedmem.vault.store.database import BlockRow, RecordRow
from fedmem.vault.store.egress_log import EgressLog
from fedmem.vault.store.ledger import Ledger

ADVICE = "Put it back, or restore the vault from a backup; `fedmem vault repair` saves the rest."


def check(root: Path, *, subject: str, ask: Ask | None) -> list[Fault]:
    """Return the faults of the vault at `root`; an empty list means that all parts fit together.

    Args:
        ask: returns the passphrase; the passphrase keystore needs it.

    Raises:
        NothingMatched: there is no vault. Refused: the vault of another subject.
    """
    remains = open_remains(root, subject=subject, ask=ask)
    try:
        if remains.core is not None:
            _check_core(remains, remains.core)
        return remains.faults
    finally:
        remains.close()


def _check_core(remains: Remains, core: Core) -> None:
    with remains.part(opening.DATABASE):
        core.database.check_integrity()
        inventory.check_tables(core.database)
    with remains.part(opening.DATABASE):
        items = acknowledgement.items_of(core.database)
        acknowledgement.check(core.table, items, remains.note)
        acknowledgement.check_serial(core)
        inventory.check_keys(core.table, items, core.database)
    with remains.part("privacy ledger"):
        ledger_anchor.check(core)
        Ledger(core).verify()
    with remains.part("records"):
        _require_none(list(unreadable_records(core)), "record(s) do not open. Restore the vault from a backup.")
    with remains.part("blocks"):
        _require_none(list(unreadable_blocks(core)), f"block(s) do not open, or their file is missing. {ADVICE}")
    with remains.part("egress.log"):
        EgressLog(core).entries()
    with remains.part("receipts"):
        _require_none(list(missing_receipts(core)), f"receipt(s) are missing or changed. {ADVICE}")
    with remains.part("item lists"):
        _require_none(list(unreadable_lists(core)), f"list(s) of erased items are missing or changed. {ADVICE}")
    with remains.part("device.pub"):
        pem = public_pem(core.keystore.load(DEVICE_KEY))
        path = core.root / "device.pub"
        if not path.is_file() or core.files.read(path) != pem:
            raise VerificationFailed(f"device.pub is missing or of another device. {ADVICE}")


def _require_none(ids: list[str], message: str) -> None:
    if ids:
        raise VerificationFailed(f"{len(ids)} {message} ({', '.join(ids[:5])}{', …' if len(ids) > 5 else ''})")


def unreadable_records(core: Core) -> Iterator[str]:
    """Yield the ids of the records that have a key and do not open.

    Args:
        core: the open parts of a vault.
    """
    with core.database.session() as session:
        rows = session.execute(select(RecordRow.id, RecordRow.sealed)).all()
    for item, sealed in rows:
        if item in core.table.keys and not _opens(core, "record", item, sealed):
            yield item


def unreadable_blocks(core: Core) -> Iterator[str]:
    """Yield the ids of the visible blocks whose facts or file do not open.

    Args:
        core: the open parts of a vault.
    """
    blocks = BlockStore(core)
    with core.database.session() as session:
        rows = session.execute(select(BlockRow.id, BlockRow.sealed).where(BlockRow.state == "live")).all()
    for item, sealed in rows:
        if item in core.table.keys:
            try:
                core.open_cell("block-facts", item, sealed)
                blocks.rows(item)
            except FedmemError:
                yield item


def missing_receipts(core: Core) -> Iterator[str]:
    """Yield the ids of completed erasures whose receipt is missing or differs from the digest in the journal.

    Args:
        core: the open parts of a vault.
    """
    for erasure, expected in inventory.receipts(core.database):
        path = core.root / "receipts" / f"{erasure}.dsse.json"
        if not path.is_file() or digest(core.files.read(path)) != expected:
            yield erasure


def unreadable_lists(core: Core) -> Iterator[str]:
    """Yield the ids of large erasures whose list of items is missing or differs from its Merkle root.

    Args:
        core: the open parts of a vault.
    """
    for erasure, root in inventory.item_roots(core.database):
        try:
            item_list.read(core, erasure, root)
        except FedmemError:
            yield erasure


def _opens(core: Core, kind: str, item: str, sealed: bytes) -> bool:
    try:
        core.open_cell(kind, item, sealed)
    except FedmemError:
        return False
    return True
