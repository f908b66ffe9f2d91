"""Save the content that the keys of a damaged vault still open into a new vault. The damaged vault does not change.

Invariants
- No part of the damaged vault is changed or removed. Its keys stay in their keystore.
- The new vault has new data keys. It takes over the ids, the times and the device key. So lineage, receipts and the
  chain of receipts stay valid.
- No spend is lost. If the ledger does not verify up to its noted end, a spend without noise is added to the new ledger,
  so ε is infinite (I6). A training run that was open becomes failed and stays charged.
- Run keys, checkpoints, kits and backups are not saved, because they belong to the old keys.

    saved = repair(root, new, subject="ana", ask=None)
    print(saved.saved, saved.lost)
"""

import contextlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedmem.errors import FedmemError, NothingMatched, VerificationFailed
from fedmem.storage.canonical import canonical_json
from fedmem.vault.backup.restoring import append_unbounded
from fedmem.vault.backup.salvage import Remains, open_remains
from fedmem.vault.crypto import container
from fedmem.vault.crypto.device_key import DEVICE_KEY, EARLIER, SUFFIX, earlier_keys, public_pem
from fedmem.vault.crypto.keystore import Ask
from fedmem.vault.store import egress_log as egress
from fedmem.vault.store import item_list, ledger_anchor
from fedmem.vault.store.blocks import BlockInfo, BlockStore
from fedmem.vault.store.core import Core
from fedmem.vault.store.database import BlockRow, ErasureRow, RecordRow, RunRow
from fedmem.vault.store.ledger import PLANNED, SPEND, Event, Ledger
from fedmem.vault.store.topics import rewrite
from fedmem.vault.vault import Vault


@dataclass(frozen=True)
class Repaired:
    """The result of a repair.

    Attributes:
        vault: id of the new vault.
        saved, lost: number of items for each kind, such as record, block, run or erasure.
        is_unbounded: True where the ledger may lack spends, so that ε is infinite from now on.
    """

    vault: str
    saved: dict[str, int]
    lost: dict[str, int]
    is_unbounded: bool


@dataclass
class _Counts:
    saved: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)


def repair(root: Path, new: Path, *, subject: str, ask: Ask | None) -> Repaired:
    """Save the readable content of the vault at `root` into a new vault at `new`.

    Guarantees
        The damaged vault is not changed. If the new ledger may lack spends, ε is infinite.

    Args:
        root: the folder of the damaged vault.
        new: the folder of the new vault; missing or empty.
        subject: the subject that the vault was created for.
        ask: returns the passphrase, which both vaults use; the passphrase keystore needs it.

    Raises:
        NothingMatched: no vault at `root`. Refused: another subject's vault, or `new` is not empty.
        VerificationFailed: the keys, the key table or the database do not open, so nothing can be saved.
        StorageError, KeystoreError: the new vault cannot be written.
    """
    remains = open_remains(root, subject=subject, ask=ask)
    try:
        if remains.core is None or remains.header is None:
            reasons = " ".join(fault.message for fault in remains.faults[:2])
            raise VerificationFailed(f"Nothing of this vault opens, so nothing can be saved. {reasons}")
        backend, simulated = remains.header.keystore, remains.header.simulated
        with Vault.create(new, subject=subject, keystore=backend, ask=ask, simulated=simulated) as vault:
            return _save(remains, remains.core, vault)
    finally:
        remains.close()


def _save(remains: Remains, old: Core, vault: Vault) -> Repaired:
    counts = _Counts()
    core = vault.core
    with contextlib.suppress(FedmemError):
        device = old.keystore.load(DEVICE_KEY)
        core.keystore.put(DEVICE_KEY, device)
        core.files.replace(core.root / "device.pub", public_pem(device))
    for file in (old.root / "receipts").glob(f"*{SUFFIX}"):  # earlier device keys
        core.files.replace(core.root / "receipts" / file.name, old.files.read(file))
    with core.writing():
        core.table.rewrite(facts={**core.table.facts, EARLIER: earlier_keys(old.table.facts)})
        events, is_whole = _events(old)
        charged = {str(event.payload.get("run")) for event in events if event.kind == SPEND}
        _save_records(old, core, counts)
        _save_runs(old, core, charged, counts)
        _save_blocks(old, core, charged, counts)
        _save_retention(old, core)
        with core.database.session() as session:
            _save_events(vault.ledger, session, events, _open_runs(core), is_whole)
            _save_erasures(old, core, session, counts)
    _save_egress(old, core, counts)
    return Repaired(vault.id, dict(+counts.saved), dict(+counts.lost), not is_whole)


def _events(old: Core) -> tuple[list[Event], bool]:
    """Return the events before the first one that does not verify, and True if all events verify."""
    ledger = Ledger(old)
    try:
        events = ledger.events()
        return events, True
    except FedmemError:
        return ledger.events_until_damage(), False


def _save_events(
    ledger: Ledger, session: Session, events: list[Event], open_runs: frozenset[str], is_whole: bool
) -> None:
    for event in events:
        ledger.append_in(session, event.kind, event.payload)
    for run in sorted(open_runs):
        ledger.append_in(session, "run_failed", {"run": run})
        session.get_one(RunRow, run).state = "failed"
    if not is_whole:
        append_unbounded(ledger, session)


def _open_runs(core: Core) -> frozenset[str]:
    with core.database.session() as session:
        return frozenset(session.execute(select(RunRow.id).where(RunRow.state.in_(("open", "finishing")))).scalars())


def _topics(old: Core) -> dict[str, str]:
    """Return item id -> topic, from the sealed index."""
    return {item: topic for topic, ids in old.table.facts["topics"].items() for item in ids}


def _reseal(old: Core, core: Core, kind: str, item: str, sealed: bytes, key: bytes) -> bytes:
    return core.seal(kind, item, key, old.open_cell(kind, item, sealed))


def _add_keys(old: Core, core: Core, keys: dict[str, bytes]) -> None:
    topics = _topics(old)
    if keys:
        rewrite(core.table, add=keys, topics={item: topics.get(item) for item in keys})


def _save_records(old: Core, core: Core, counts: _Counts) -> None:
    with old.database.session() as session:
        rows = session.execute(select(RecordRow.id, RecordRow.created, RecordRow.sealed)).all()
    keys, saved = dict[str, bytes](), list[RecordRow]()
    for item, created, sealed in rows:
        key = container.new_key()
        try:
            cell = _reseal(old, core, "record", item, sealed, key)
        except (FedmemError, KeyError):
            continue
        keys[item] = key
        saved.append(RecordRow(id=item, created=created, sealed=cell))
    _add_keys(old, core, keys)
    with core.database.session() as session:
        session.add_all(saved)
    counts.saved["record"] = len(saved)
    counts.lost["record"] = len(_keyed_records(old) | {row[0] for row in rows}) - len(saved)


def _keyed_records(old: Core) -> set[str]:
    """Return the ids of all records that have a key, also of records whose row is lost."""
    with old.database.session() as session:
        runs = session.execute(select(RunRow.id, RunRow.key_id, RunRow.block_id)).all()
    other_ids = {item for run in runs for item in run} | {old.table.facts["ledger"]}
    return set(old.table.keys) - other_ids


def _save_runs(old: Core, core: Core, charged: set[str], counts: _Counts) -> None:
    with old.database.session() as session:
        session.expire_on_commit = False
        rows = session.execute(select(RunRow).order_by(RunRow.created)).scalars().all()
    keys, saved = dict[str, bytes](), list[RunRow]()
    for row in rows:
        key = container.new_key()
        try:
            cell = _reseal(old, core, "run", row.id, row.sealed, key)
        except (FedmemError, KeyError):
            counts.lost["run"] += 1
            continue
        if row.state != PLANNED and row.id not in charged:
            counts.lost["run"] += 1
            continue
        keys[row.id] = key
        columns = {"id": row.id, "key_id": row.key_id, "block_id": row.block_id, "state": row.state}
        saved.append(RunRow(**columns, created=row.created, sealed=cell))
    _add_keys(old, core, keys)
    with core.database.session() as session:
        session.add_all(saved)
    counts.saved["run"] = len(saved)


def _save_blocks(old: Core, core: Core, charged: set[str], counts: _Counts) -> None:
    blocks, target = BlockStore(old), BlockStore(core)
    with old.database.session() as session:
        rows = session.execute(
            select(BlockRow.id, BlockRow.created, BlockRow.sealed).where(BlockRow.state == "live")
        ).all()
    keys, saved = dict[str, bytes](), list[BlockRow]()
    for item, created, sealed in rows:
        key = container.new_key()
        try:
            facts: dict[str, Any] = json.loads(old.open_cell("block-facts", item, sealed))
            content = blocks.rows(item)
        except (FedmemError, KeyError):
            counts.lost["block"] += 1
            continue
        if BlockInfo(id=item, **facts).run_id not in charged:
            counts.lost["block"] += 1
            continue
        target.write(item, key, facts, content)
        keys[item] = key
        cell = core.seal("block-facts", item, key, canonical_json(facts))
        saved.append(BlockRow(id=item, state="live", created=created, sealed=cell))
    _add_keys(old, core, keys)
    with core.database.session() as session:
        session.add_all(saved)
    counts.saved["block"] = len(saved)


def _save_retention(old: Core, core: Core) -> None:
    core.table.rewrite(facts={**core.table.facts, "retention": dict(old.table.facts["retention"])})


def _save_erasures(old: Core, core: Core, session: Session, counts: _Counts) -> None:
    """Copy the journal of completed erasures and their receipts. The new vault has the device key that signed them."""
    with old.database.session() as reading:
        rows = reading.execute(select(ErasureRow.id, ErasureRow.state, ErasureRow.created, ErasureRow.journal)).all()
    for item, state, created, journal in rows:
        facts = json.loads(journal)
        if facts.get("opening"):
            facts["opening"] = _reseal_opening(old, core, item, facts["opening"])
        if state in ("pending", "in_progress", "partial"):
            counts.lost["erasure"] += 1
            continue
        session.add(ErasureRow(id=item, state=state, created=created, journal=canonical_json(facts).decode()))
        counts.saved["erasure"] += 1
        with contextlib.suppress(NothingMatched):
            name = f"receipts/{item}.dsse.json"
            core.files.replace(core.root / name, old.files.read(old.root / name))
        with contextlib.suppress(FedmemError):
            _reseal_list(old, core, item, facts.get("listed") or {})


def _reseal_list(old: Core, core: Core, erasure: str, listed: dict[str, Any]) -> None:
    """Copy the list of items of a large erasure, sealed for the new vault. A list that does not open is left out."""
    if listed:
        item_list.write(core, erasure, item_list.read(old, erasure, listed["root"]))


def _reseal_opening(old: Core, core: Core, erasure: str, sealed: str) -> str:
    """Return an undelivered opening, sealed under the new ledger key and as hex; "" if it does not open."""
    old_key, key = (side.table.keys[side.table.facts["ledger"]] for side in (old, core))
    with contextlib.suppress(FedmemError):
        opening_bytes = container.open_cell(old_key, bytes.fromhex(sealed), identity=old.identity("opening", erasure))
        return core.seal("opening", erasure, key, opening_bytes).hex()
    return ""


def _save_egress(old: Core, core: Core, counts: _Counts) -> None:
    ledger = egress.EgressLog(core)
    try:
        lines = egress.EgressLog(old).entries()
    except FedmemError:
        lines = []
    for line in lines:
        ledger.enter_at(line.when, line.entry)
    ledger.settle()
    counts.saved["egress line"] = len(lines)
    noted_head = ledger_anchor.read_note(old.keystore, egress.NOTE)
    if noted_head is not None and noted_head[0] >= len(lines):
        counts.lost["egress line"] = noted_head[0] + 1 - len(lines)
        with core.writing():
            core.table.rewrite(facts={**core.table.facts, egress.GAP: list(noted_head)})
