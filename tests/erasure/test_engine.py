"""Erasure: exact, never silently partial, and finished after any crash (I4, I5)."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from fedmem import erasure
from fedmem.erasure import Scope
from fedmem.errors import FedmemError, KeystoreError, NothingMatched, PartialErasure, Refused, StorageError
from fedmem.vault.vault import ALL, StaleReader

OTHER = "topic-money"
STEPS = 37  # operations of this erasure on files, with two that remove the reserve and three that make it again
BEGUN = 2  # before it only the reserve is removed
DONE = 30  # from here on it is completed, and only the keystore's notes of it are missing
NEED_SPACE = (2, 3, 4, 7, 8, 11, 18, 19, 22)  # where a full disk first shows


def full(vaults, **options: object):
    """A vault with two topics, shareable records, three blocks and an open run."""
    vault = vaults.create(**options)
    vault.add_records(vaults.records(4))
    vault.add_records(vaults.records(2, topic=OTHER))
    vault.add_records(vaults.records(2, topic=None))
    vaults.block(vault)
    vaults.block(vault)
    vaults.block(vault, OTHER, b"other rows")
    vault.begin_run(vaults.TOPIC, "release-1", {}, "d", [], {"sigma": 1.0})
    return vault


def erase(vault, name: str) -> erasure.Outcome:
    planned = erasure.plan(vault, Scope.topic(name))
    return erasure.execute(vault, planned, planned.digest)


def gone(vault, topic: str) -> bool:
    """Whether the ordinary path finds nothing of a topic."""
    return not vault.records(topic) and all(block.topic != topic for block in vault.blocks())


def check_others(vault) -> None:
    """What was not in scope is whole."""
    assert len(vault.records(OTHER)) == len(vault.records(None)) == 2
    assert vault.block_rows(vault.block(OTHER).id) == b"other rows"
    assert vault.ledger.verify()


def test_erasing_a_topic_takes_all_of_it_and_nothing_else(vaults) -> None:
    vault = full(vaults)
    outcome = erase(vault, vaults.TOPIC)
    assert outcome.state == "completed"
    assert erasure.verify(vault, outcome.id).is_clean
    assert gone(vault, vaults.TOPIC)
    vault = vaults.reopen(vault)
    assert gone(vault, vaults.TOPIC)
    check_others(vault)
    with pytest.raises(NothingMatched):
        erasure.plan(vault, Scope.topic(vaults.TOPIC))


def test_after_it_the_vault_answers_like_one_that_never_held_it(vaults) -> None:
    vault, never = full(vaults), vaults.create("never")
    never.add_records(vaults.records(2, topic=OTHER))
    never.add_records(vaults.records(2, topic=None))
    vaults.block(never, OTHER, b"other rows")
    erase(vault, vaults.TOPIC)

    def seen(one) -> object:
        records = [(r.topic, r.text, r.path, r.vector.tobytes(), r.release) for r in one.records(ALL)]
        blocks = [(b.topic, b.release, b.version, b.layers, b.width, b.d_model, b.bytes) for b in one.blocks()]
        return records, blocks, [bytes(one.block_rows(b.id)) for b in one.blocks()]

    assert seen(vault) == seen(never)


@pytest.mark.parametrize("keystore", ["keyfile", "passphrase"])
def test_an_old_copy_opens_with_no_key_that_still_exists(vaults, tmp_path: Path, keystore: str) -> None:
    ask = {"ask": lambda: "correct horse"} if keystore == "passphrase" else {}
    vault = full(vaults, keystore=keystore, **ask)
    shutil.copytree(vault.root, tmp_path / "old")
    erase(vault, vaults.TOPIC)
    with pytest.raises(KeystoreError):
        vaults.open("old", **ask)
    vault.close()
    # A thief who puts the old table or the old database into the new root gains nothing either.
    shutil.copy(tmp_path / "old" / "vault.db", vault.root / "vault.db")
    for suffix in ("-wal", "-shm"):
        (vault.root / f"vault.db{suffix}").unlink(missing_ok=True)
    with pytest.raises(FedmemError):
        vaults.open(**ask).records(vaults.TOPIC)


def test_nothing_of_it_is_left_but_random_ids(vaults) -> None:
    vault = full(vaults)
    topic_keys = [vault.core.table.keys[item] for item in vault.ids_of(vaults.TOPIC) & vault.core.table.keys.keys()]
    table = (vault.root / "table.fmk").read_bytes()
    rows = (vault.core.block_file(vault.block(vaults.TOPIC).id)).read_bytes()
    cells = sqlite3.connect(vault.root / "vault.db")
    ids = sorted(vault.ids_of(vaults.TOPIC))
    sealed = [bytes(c) for (i, c) in cells.execute("SELECT id, sealed FROM records") if i in ids]
    cells.close()
    erase(vault, vaults.TOPIC)
    needles = {
        "table": table[200:240],
        "block": rows[300:340],
        "text": vaults.CANARY.encode(),
        "topic": vaults.TOPIC.encode(),
    }
    needles |= {f"cell {i}": cell[100:140] for i, cell in enumerate(sealed)}
    needles |= {f"key {i}": key for i, key in enumerate(topic_keys)}
    assert len(sealed) == 4
    assert erasure.residue.scan(vaults.base, needles) == []


def test_everything_leaves_the_ledger(vaults) -> None:
    vault = full(vaults)
    spends = [event for event in vault.ledger.events() if event.kind == "spend"]
    planned = erasure.plan(vault, Scope.subject())
    erasure.execute(vault, planned, planned.digest)
    assert vault.records(ALL) == vault.blocks() == []
    assert [event for event in vault.ledger.events() if event.kind == "spend"] == spends
    assert list((vault.root / "blocks").iterdir()) == []
    vaults.block(vaults.reopen(vault))


def test_another_digest_is_refused(vaults) -> None:
    vault = full(vaults)
    planned = erasure.plan(vault, Scope.topic(vaults.TOPIC))
    with pytest.raises(Refused, match="digest"):
        erasure.execute(vault, planned, erasure.plan(vault, Scope.topic(OTHER)).digest)
    assert not gone(vault, vaults.TOPIC)
    assert erasure.status(vault) == []


def test_a_plan_that_no_longer_holds_is_refused(vaults) -> None:
    vault = full(vaults)
    planned = erasure.plan(vault, Scope.topic(vaults.TOPIC))
    vault.add_records(vaults.records(1))
    with pytest.raises(Refused, match="changed since"):
        erasure.execute(vault, planned, planned.digest)
    assert len(vault.records(vaults.TOPIC)) == 5


@pytest.mark.parametrize("at", range(STEPS + 1))
def test_cut_at_any_operation_then_resumed(vaults, faults, at: int) -> None:
    vault = full(vaults)
    planned = erasure.plan(vault, Scope.topic(vaults.TOPIC))
    faults.arm("cut", at)
    cut = False
    try:
        erasure.execute(vault, planned, planned.digest)
    except faults.PowerCut:
        cut = True
    assert cut == (at < STEPS)
    faults.arm("cut", None)
    vault = vaults.reopen(vault)
    if at < BEGUN:
        assert erasure.status(vault) == erasure.resume(vault) == []
        assert not gone(vault, vaults.TOPIC)
        return
    if cut and at < DONE:
        (before,) = erasure.status(vault)
        assert before.state in ("pending", "in_progress")
        assert vault.unfinished_erasures() == [before.id]
        assert [outcome.state for outcome in erasure.resume(vault)] == ["completed"]
    (status,) = erasure.status(vault)
    assert status.state == "completed"
    assert erasure.verify(vault, status.id).is_clean
    assert status.receipt_path is not None
    assert erasure.receipt.verify(status.receipt_path.read_bytes(), (vault.root / "device.pub").read_bytes())
    assert gone(vault, vaults.TOPIC)
    check_others(vault)
    assert erasure.resume(vault) == []


@pytest.mark.parametrize("at", NEED_SPACE)
def test_full_disk_at_any_operation_keeps_the_old_state_or_rolls_forward(vaults, faults, at: int) -> None:
    vault = full(vaults)
    planned = erasure.plan(vault, Scope.topic(vaults.TOPIC))
    faults.arm("full", at)
    error: FedmemError | None = None
    try:
        erasure.execute(vault, planned, planned.digest)
    except FedmemError as caught:
        error = caught
    faults.arm("full", None)
    (status,) = erasure.status(vault)
    if isinstance(error, StorageError):
        assert status.state == "failed"
        assert len(vault.records(vaults.TOPIC)) == 4
        assert len(vault.blocks()) == 3
        erase(vaults.reopen(vault), vaults.TOPIC)
    elif error is not None:
        assert isinstance(error, PartialErasure)
        assert error.exit_code == 5
        assert status.state == "partial"
        assert gone(vault, vaults.TOPIC)
        assert [outcome.state for outcome in erasure.resume(vault)] == ["completed"]
    else:
        assert status.state == "completed"
    check_others(vaults.reopen(vaults.opened[-1]))


def test_planted_residue_is_found(vaults) -> None:
    vault = full(vaults)
    planned = erasure.plan(vault, Scope.topic(vaults.TOPIC))
    salt = next(item.salt for item in planned.items if item.kind == "record")
    outcome = erasure.execute(vault, planned, planned.digest)
    (vault.root / "receipts" / "left").write_bytes(b"..." + bytes.fromhex(salt) + b"...")
    assert erasure.verify(vault, outcome.id).is_clean  # by id nothing is there
    assert not erasure.verify(vault, outcome.id, deep=True).is_clean


def test_a_reader_of_the_old_generation_stops(vaults) -> None:
    vault = full(vaults)
    reader = vaults.open(write=False)
    block, generation = reader.block(vaults.TOPIC).id, reader.generation
    erase(vault, vaults.TOPIC)
    assert reader.generation == generation + 1
    for fetch in (lambda: reader.block_rows(block), lambda: reader.records(ALL), reader.blocks, reader.ledger.events):
        with pytest.raises(StaleReader, match="Open it again"):
            fetch()
    check_others(vaults.open(write=False))


def test_a_run_of_an_erased_topic_cannot_finish(vaults) -> None:
    vault = vaults.create()
    run = vault.begin_run(vaults.TOPIC, "r", {}, "d", [], {})
    erase(vault, vaults.TOPIC)
    with pytest.raises(NothingMatched):
        vault.finish_run(run, vaults.TOPIC, "r", b"rows", 1, 1, 1)
    assert vault.blocks() == []


def test_status_of_an_unknown_erasure(vaults) -> None:
    with pytest.raises(NothingMatched):
        erasure.verify(vaults.create(), "absent")
