"""The egress ledger: every line is durable before it counts, and every change of the past is noticed."""

import fcntl
import json
import os
import re
import tarfile
from pathlib import Path

import pytest

from fedmem import erasure
from fedmem.errors import Busy, StorageError, VerificationFailed
from fedmem.vault.backup import backup, restoring
from fedmem.vault.crypto import rekey, vault_header
from fedmem.vault.store import egress_log as egress
from fedmem.vault.store import ledger_anchor
from fedmem.vault.store.egress_entry import EgressEntry
from fedmem.vault.store.egress_log import EgressLog
from fedmem.vault.store.ledger import chain
from fedmem.vault.vault import Vault

SPEND = {"mechanism": "poisson-gaussian/1", "sampling_rate": 0.3, "noise_multiplier": 1.0, "steps": 1}


def entry(number: int) -> EgressEntry:
    return EgressEntry("train.anchor", number, 4096, f"{number:064x}", "run-1", "b" * 64, SPEND, 1e-5)


def filled(vault: Vault, lines: int = 3) -> EgressLog:
    ledger = EgressLog(vault.core)
    for number in range(1, lines + 1):
        ledger.enter(entry(number))
        ledger.settle()
    return ledger


def log(vault: Vault) -> Path:
    return vault.root / egress.NAME


def test_lines_come_back_in_order(vaults) -> None:
    vault = vaults.create()
    filled(vault)
    for write in (True, False):
        vault = vaults.reopen(vault, write=write)
        lines = EgressLog(vault.core).entries()
        assert [line.entry for line in lines] == [entry(1), entry(2), entry(3)]
        assert [line.seq for line in lines] == [0, 1, 2]
        assert [line.when for line in lines] == sorted(line.when for line in lines)
        assert EgressLog(vault.core).complete()


def test_a_vault_that_sent_nothing_has_an_empty_ledger_and_no_file(vaults) -> None:
    vault = vaults.create()
    assert EgressLog(vault.core).entries() == []
    assert EgressLog(vault.core).complete()
    assert not log(vault).exists()


def test_it_is_chained_as_the_privacy_ledger_is(vaults) -> None:
    vault = vaults.create()
    filled(vault)
    last = ""
    for seq, text in enumerate(log(vault).read_bytes().splitlines()):
        row = json.loads(text)
        last = chain(last, seq, bytes.fromhex(row["sealed"]))
        assert row["digest"] == last
    assert EgressLog(vault.core).entries()[-1].chain == last


def test_nothing_of_a_line_is_in_the_clear(vaults) -> None:
    vault = vaults.create()
    filled(vault)
    assert re.fullmatch(rb'(\{"digest":"[0-9a-f]{64}","sealed":"[0-9a-f]+"\}\n){3}', log(vault).read_bytes())


def test_a_reader_of_the_vault_enters_while_another_program_writes(vaults) -> None:
    writer = vaults.create()
    reader = vaults.open(write=False)
    filled(reader, 2)
    writer.add_records(vaults.records(2))
    assert [line.entry.number for line in EgressLog(writer.core).entries()] == [1, 2]
    # Two processes enter by turns.
    EgressLog(writer.core).enter(entry(3))
    filled(reader, 1)
    assert [line.entry.number for line in EgressLog(writer.core).entries()] == [1, 2, 3, 1]


CHANGES = {
    "a line is gone": lambda lines: lines[:1] + lines[2:],
    "the first is gone": lambda lines: lines[1:],
    "two change places": lambda lines: [lines[1], lines[0], lines[2]],
    "a line comes twice": lambda lines: [lines[0], *lines],
    "a digit of a digest": lambda lines: [lines[0].replace(b'"digest":"', b'"digest":"0', 1)[:-1], *lines[1:]],
    "a sealed byte": lambda lines: [lines[0], lines[1][:120] + bytes([lines[1][120] ^ 1]) + lines[1][121:], lines[2]],
    "spaces": lambda lines: [lines[0].replace(b":", b": "), *lines[1:]],
    "no JSON": lambda lines: [lines[0], b"{}", lines[2]],
    "text": lambda lines: [b"\xff\x00", *lines],
    "deep": lambda lines: [b"[" * 100_000, *lines],
    "the last is gone": lambda lines: lines[:-1],
    "all are gone": lambda lines: [],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_an_edited_or_shortened_ledger_is_noticed_and_enters_nothing(vaults, change) -> None:
    vault = vaults.create()
    filled(vault)
    changed = b"".join(line + b"\n" for line in change(log(vault).read_bytes().splitlines()))
    log(vault).write_bytes(changed)
    vault = vaults.reopen(vault)
    for look in (EgressLog(vault.core).entries, lambda: EgressLog(vault.core).enter(entry(4))):
        with pytest.raises(VerificationFailed) as caught:
            look()
        assert caught.value.exit_code == 6
    assert log(vault).read_bytes() == changed


def test_a_lost_file_is_noticed(vaults) -> None:
    vault = vaults.create()
    filled(vault)
    log(vault).unlink()
    with pytest.raises(VerificationFailed):
        EgressLog(vaults.reopen(vault).core).entries()


def test_a_chain_made_anew_without_the_key_is_noticed(vaults) -> None:
    vault, other = vaults.create(), vaults.create("other")
    filled(vault, 2)
    filled(other, 2)
    vault.core.keystore.note(egress.NOTE, other.core.keystore.noted(egress.NOTE))
    log(vault).write_bytes(log(other).read_bytes())
    with pytest.raises(VerificationFailed):
        EgressLog(vault.core).entries()


@pytest.mark.parametrize("cut", [1, 60, 200])
def test_a_line_cut_short_by_a_crash_was_never_entered(vaults, cut: int) -> None:
    vault = vaults.create()
    filled(vault, 2)
    whole = log(vault).read_bytes()
    EgressLog(vault.core).enter(entry(3))  # the power goes before the head is noted
    log(vault).write_bytes(log(vault).read_bytes()[: len(whole) + cut])
    vault = vaults.reopen(vault)
    assert [line.entry.number for line in EgressLog(vault.core).entries()] == [1, 2]
    EgressLog(vault.core).enter(entry(9))
    assert [line.entry.number for line in EgressLog(vault.core).entries()] == [1, 2, 9]


@pytest.mark.parametrize("kind", ["cut", "full"])
@pytest.mark.parametrize("at", range(3))
def test_a_line_is_whole_or_absent(vaults, faults, kind: str, at: int) -> None:
    vault = vaults.create()
    ledger = filled(vault, 2)
    faults.arm(kind, at)
    try:
        ledger.enter(entry(3))
        ledger.settle()
        acknowledged = True
    except (StorageError, faults.PowerCut):
        acknowledged = False
    faults.arm("cut", None)
    vault = vaults.reopen(vault)
    found = [line.entry.number for line in EgressLog(vault.core).entries()]
    assert found == [1, 2, 3] if acknowledged else found in ([1, 2], [1, 2, 3])
    filled(vault, 1)


def test_it_is_on_the_disk_before_enter_returns(vaults, monkeypatch: pytest.MonkeyPatch) -> None:
    vault, synced = vaults.create(), []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    ledger = EgressLog(vault.core)
    ledger.enter(entry(1))
    assert synced == [str(log(vault)), str(vault.root)]
    synced.clear()
    ledger.enter(entry(2))
    assert synced == [str(log(vault))]  # one durable write a message


def test_a_line_that_cannot_be_entered_in_time_is_busy(vaults, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = vaults.create()
    filled(vault, 1)
    monkeypatch.setattr(egress, "PATIENCE", 0.05)
    with log(vault).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Busy):
            EgressLog(vault.core).enter(entry(2))


def test_an_erasure_leaves_it_and_a_new_key_opens_it(vaults) -> None:
    vault = vaults.create()
    vault.add_records(vaults.records(2))
    vaults.block(vault)
    filled(vault)
    before = log(vault).read_bytes()
    for scope in (erasure.Scope.topic(vaults.TOPIC), erasure.Scope.subject()):
        if scope.kind == "subject":
            vault.add_records(vaults.records(1))
        planned = erasure.plan(vault, scope)
        outcome = erasure.execute(vault, planned, planned.digest)
        assert erasure.verify(vault, outcome.id, deep=True).is_clean
    vault = vaults.reopen(vault)
    assert log(vault).read_bytes() == before
    assert len(EgressLog(vault.core).entries()) == 3


def test_a_backup_carries_it_and_a_restored_one_says_what_it_lacks(vaults, tmp_path: Path) -> None:
    vault = vaults.create()
    filled(vault, 2)
    backup.create(vault, tmp_path / "early")
    filled(vault, 1)
    backup.create(vault, tmp_path / "late")
    vault.close()
    restoring.restore(tmp_path / "late", tmp_path / "whole", subject="alice")
    found = vaults.open("whole")
    assert len(EgressLog(found.core).entries()) == 3
    assert EgressLog(found.core).complete()
    found.close()
    restored = restoring.restore(tmp_path / "early", tmp_path / "less", subject="alice")
    assert not restored.unbounded  # a message that left spends nothing of the private blocks
    found = vaults.open("less")
    ledger = EgressLog(found.core)
    assert [line.entry.number for line in ledger.entries()] == [1, 2]
    assert not ledger.complete()
    filled(found, 1)
    assert ledger_anchor.read_note(found.core.keystore, egress.NOTE) == (2, EgressLog(found.core).entries()[-1].chain)
    found = vaults.reopen(found)
    assert not EgressLog(found.core).complete()
    log(found).write_bytes(b"")
    with pytest.raises(VerificationFailed):
        EgressLog(found.core).entries()


def test_it_moves_with_the_keys(vaults) -> None:
    vault, ask = vaults.create(), lambda: "a long enough passphrase"
    filled(vault)
    core = vault.core
    known, _ = vault_header.read_facts(core.files, core.root)
    rekey.renew(core.files, core.root, core.table, known, "passphrase", ask)
    vault.close()
    vault = vaults.open(ask=ask)
    assert len(EgressLog(vault.core).entries()) == 3
    log(vault).write_bytes(b"")
    with pytest.raises(VerificationFailed):
        EgressLog(vault.core).entries()


def test_a_vault_of_an_earlier_version_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(Path(__file__).parent / "golden" / "format-1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))
    root = tmp_path / "home" / "vaults" / "v"
    with Vault.open(root, subject="alice", write=False) as vault:
        assert EgressLog(vault.core).entries() == []
        filled(vault)
    with Vault.open(root, subject="alice") as vault:
        assert len(EgressLog(vault.core).entries()) == 3
