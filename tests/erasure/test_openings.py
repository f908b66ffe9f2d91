"""The opening of a receipt is in the vault, sealed, from before the erasure until its delivery is confirmed."""

import json
import sqlite3

import pytest

from fedmem import erasure
from fedmem.erasure import Scope, openings, receipt
from fedmem.errors import FedmemError, NothingMatched, Refused, StorageError, VerificationFailed
from fedmem.vault.crypto import rekey

OTHER = "topic-money"


def filled(vaults, **options: object):
    vault = vaults.create(**options)
    vault.add_records(vaults.records(3))
    vault.add_records(vaults.records(2, topic=OTHER))
    vaults.block(vault)
    return vault


def erase(vault, topic: str) -> erasure.Outcome:
    planned = erasure.plan(vault, Scope.topic(topic))
    return erasure.execute(vault, planned, planned.digest)


def opens(vault, outcome: erasure.Outcome, topic: str, opening: str) -> bool:
    content = receipt.verify(outcome.receipt_path.read_bytes(), (vault.root / "device.pub").read_bytes())
    return receipt.opens(content, Scope.topic(topic), bytes.fromhex(opening))


def state(vault) -> str:
    return erasure.status(vault)[-1].opening


def sealed_cell(vault, erasure_id: str) -> str:
    from fedmem.erasure import journal

    return journal.read(vault, erasure_id).opening


def edit(vault, erasure_id: str, **fields: object) -> None:
    """Change fields of a journal entry on the disk; None removes one."""
    vault.close()
    with sqlite3.connect(vault.root / "vault.db") as database:
        (text,) = database.execute("SELECT journal FROM erasures WHERE id = ?", (erasure_id,)).fetchone()
        facts = {name: value for name, value in (json.loads(text) | fields).items() if value is not None}
        database.execute("UPDATE erasures SET journal = ? WHERE id = ?", (json.dumps(facts), erasure_id))
    database.close()


def test_it_is_kept_over_erasures_and_new_keys_until_it_is_delivered(vaults) -> None:
    vault = filled(vaults)
    outcome = erase(vault, vaults.TOPIC)
    erase(vault, OTHER)
    rekey.rotate(vault.core)
    vault = vaults.reopen(vault)
    assert openings.read(vault, outcome.id) == outcome.opening
    assert opens(vault, outcome, vaults.TOPIC, outcome.opening)
    assert not opens(vault, outcome, OTHER, outcome.opening)
    assert [one.opening for one in erasure.status(vault)] == ["waiting", "waiting"]
    openings.confirm_delivery(vault, outcome.id)
    assert [one.opening for one in erasure.status(vault)] == ["delivered", "waiting"]
    with pytest.raises(NothingMatched, match="was delivered"):
        openings.read(vault, outcome.id)
    openings.confirm_delivery(vault, outcome.id)
    assert erasure.verify(vault, outcome.id, deep=True).is_clean


def test_the_vault_holds_it_sealed_and_after_delivery_not_at_all(vaults) -> None:
    vault = filled(vaults)
    outcome = erase(vault, vaults.TOPIC)
    sealed = sealed_cell(vault, outcome.id)
    needles = {"hex": outcome.opening.encode(), "bytes": bytes.fromhex(outcome.opening)}
    assert erasure.residue.scan(vaults.base, needles) == []
    assert erasure.residue.scan(vaults.base, {"sealed": sealed.encode()}) != []
    openings.confirm_delivery(vault, outcome.id)
    assert erasure.residue.scan(vaults.base, needles | {"sealed": sealed.encode()}) == []


@pytest.mark.parametrize("at", [2, 6, 12, 18])
def test_a_cut_erasure_gives_it_after_resume(vaults, faults, at: int) -> None:
    vault = filled(vaults)
    planned = erasure.plan(vault, Scope.topic(vaults.TOPIC))
    faults.arm("cut", at)
    with pytest.raises(faults.PowerCut):
        erasure.execute(vault, planned, planned.digest)
    faults.arm("cut", None)
    vault = vaults.reopen(vault)
    assert state(vault) == "waiting"
    (outcome,) = erasure.resume(vault)
    assert opens(vault, outcome, vaults.TOPIC, outcome.opening)
    assert openings.read(vault, outcome.id) == outcome.opening


def test_a_failed_and_a_cancelled_erasure_drop_it(vaults, faults, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: object) -> None:
        raise faults.PowerCut

    vault = filled(vaults)
    planned = erasure.plan(vault, Scope.topic(vaults.TOPIC))
    faults.arm("full", 0)
    with pytest.raises(StorageError):
        erasure.execute(vault, planned, planned.digest)
    faults.arm("full", None)
    monkeypatch.setattr("fedmem.erasure.engine.execute_entry", cut)
    with pytest.raises(faults.PowerCut):
        erasure.execute(vault, planned, planned.digest)
    vault = vaults.reopen(vault)
    failed, pending = erasure.status(vault)
    assert (failed.state, pending.state, pending.opening) == ("failed", "pending", "waiting")
    assert erasure.cancel(vault, pending.id).opening == ""
    for one in (failed, pending):
        assert sealed_cell(vault, one.id) == ""
        with pytest.raises(NothingMatched, match="cancelled or failed"):
            openings.read(vault, one.id)


def test_an_entry_of_an_earlier_fedmem_reads_and_resumes(vaults, faults) -> None:
    vault = filled(vaults)
    ended = erase(vault, OTHER)
    planned = erasure.plan(vault, Scope.topic(vaults.TOPIC))
    faults.arm("cut", 6)
    with pytest.raises(faults.PowerCut):
        erasure.execute(vault, planned, planned.digest)
    faults.arm("cut", None)
    cut = erasure.status(vaults.reopen(vault))[-1].id
    for one in (ended.id, cut):
        edit(vaults.opened[-1], one, opening=None, delivered=None)
    vault = vaults.open()
    (outcome,) = erasure.resume(vault)
    assert (outcome.id, outcome.state, outcome.opening) == (cut, "completed", "")
    assert [one.opening for one in erasure.status(vault)] == ["not kept", "not kept"]
    with pytest.raises(NothingMatched, match="never kept"):
        openings.read(vault, ended.id)


def test_a_cell_of_another_erasure_or_a_changed_one_is_refused(vaults) -> None:
    vault = filled(vaults)
    first, second = erase(vault, vaults.TOPIC), erase(vault, OTHER)
    other = sealed_cell(vault, second.id)
    for cell in (other, other[:-2] + f"{int(other[-2:], 16) ^ 1:02x}"):
        edit(vaults.opened[-1], first.id, opening=cell)
        with pytest.raises(VerificationFailed):
            openings.read(vaults.open(), first.id)


def test_a_reader_reads_it_and_cannot_remove_it(vaults) -> None:
    vault = filled(vaults)
    outcome = erase(vault, vaults.TOPIC)
    reader = vaults.open(write=False)
    assert openings.read(reader, outcome.id) == outcome.opening
    with pytest.raises(Refused):
        openings.confirm_delivery(reader, outcome.id)
    for call in (openings.read, openings.confirm_delivery):
        with pytest.raises(NothingMatched):
            call(vault, "absent")
    assert openings.read(vault, outcome.id) == outcome.opening


def test_after_a_later_erasure_a_reader_opens_again(vaults) -> None:
    vault = filled(vaults)
    outcome = erase(vault, vaults.TOPIC)
    reader = vaults.open(write=False)
    erase(vault, OTHER)
    with pytest.raises(FedmemError, match="Open it again"):
        openings.read(reader, outcome.id)
