"""`check` names what does not fit and changes nothing; `repair` saves what opens, and forgets no spend."""

import json
import math
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fedmem import erasure
from fedmem.cli.main import main
from fedmem.erasure import openings, receipt
from fedmem.errors import NothingMatched, Refused, VerificationFailed
from fedmem.privacy.accounting import epsilon_rdp
from fedmem.privacy.ledger import subject_epsilon
from fedmem.vault.backup.check import check
from fedmem.vault.backup.repair import repair
from fedmem.vault.store.egress_log import EgressLog
from fedmem.vault.vault import ALL, Vault
from tests.vault.test_opening import block_of, root, seen, states, states_copy

__all__ = ["root", "states"]  # fixtures


def bytes_under(root: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if not name.endswith("-shm") and (data or "wal" not in name)}


def test_no_vault_and_another_subject(root: Path, tmp_path: Path) -> None:
    with pytest.raises(NothingMatched):
        check(tmp_path / "nothing", subject="ana", ask=None)
    with pytest.raises(Refused):
        check(root, subject="bob", ask=None)
    with pytest.raises(Refused):
        repair(root, tmp_path / "new", subject="bob", ask=None)
    assert not (tmp_path / "new").exists()


def test_a_lost_header_costs_nothing(root: Path, tmp_path: Path) -> None:
    whole = seen(states_copy(root), "ana", write=False)
    (root / "vault.json").unlink()
    before = bytes_under(root)
    result = repair(root, tmp_path / "new", subject="ana", ask=None)
    assert bytes_under(root) == before
    assert (result.lost, result.is_unbounded) == ({}, False)
    assert seen(tmp_path / "new", "ana", write=True) == whole
    assert check(tmp_path / "new", subject="ana", ask=None) == []
    with Vault.open(tmp_path / "new", subject="ana") as vault:
        assert vault.id != json.loads((states_copy_of(root) / "vault.json").read_bytes())["id"]
        assert {record.topic for record in vault.records(ALL)} == {"health", "notes"}
        for status in erasure.status(vault):
            key = (vault.root / "device.pub").read_bytes()
            assert receipt.verify(status.receipt_path.read_bytes(), key)
            assert len(openings.read(vault, status.id)) == 64  # it was never delivered
        planned = erasure.plan(vault, erasure.Scope.topic("notes"))
        assert erasure.execute(vault, planned, planned.digest).state == "completed"
        files = [status.receipt_path.read_bytes() for status in erasure.status(vault)]
        assert len(receipt.verify_chain(files, (vault.root / "device.pub").read_bytes())) == 3


def states_copy_of(root: Path) -> Path:
    return root.with_name("copy")


def test_a_lost_log_saves_the_rest_and_says_that_spends_may_be_missing(
    states: dict[str, Path], root: Path, tmp_path: Path
) -> None:
    for path in root.glob("vault.db*"):
        path.unlink()
    for path in states["older"].glob("vault.db*"):
        shutil.copy(path, root)
    with pytest.raises(VerificationFailed):
        Vault.open(root, subject="ana")
    result = repair(root, tmp_path / "new", subject="ana", ask=None)
    assert result.is_unbounded
    assert result.saved["record"] == 3
    assert result.lost["record"] > 0
    with Vault.open(tmp_path / "new", subject="ana") as vault:
        assert sorted(record.text for record in vault.records(ALL)) == ["ana 0", "ana 0", "ana last"]
        assert math.isinf(subject_epsilon(vault.ledger.events(), 1e-5, epsilon_rdp))
    assert check(tmp_path / "new", subject="ana", ask=None) == []


def test_a_missing_block_file_is_counted_and_the_rest_is_saved(root: Path, tmp_path: Path) -> None:
    block_of(root).unlink()
    result = repair(root, tmp_path / "new", subject="ana", ask=None)
    assert (result.lost, result.is_unbounded) == ({"block": 1}, False)
    assert result.saved["block"] == 2
    with Vault.open(tmp_path / "new", subject="ana") as vault:
        assert [vault.block_rows(block.id) for block in vault.blocks()] == [b"rows of ana"] * 2


def test_a_ledger_that_was_edited_is_saved_until_there_and_counts_as_unbounded(root: Path, tmp_path: Path) -> None:
    seen(root, "ana", write=True)
    with sqlite3.connect(root / "vault.db") as connection:
        connection.execute("UPDATE events SET digest = 'x' WHERE seq = 2")
    connection.close()
    result = repair(root, tmp_path / "new", subject="ana", ask=None)
    assert result.is_unbounded
    with Vault.open(tmp_path / "new", subject="ana") as vault:
        assert [event.kind for event in vault.ledger.events()][:2] == ["spend", "run_finished"]
        assert math.isinf(subject_epsilon(vault.ledger.events(), 1e-5, epsilon_rdp))
    assert check(tmp_path / "new", subject="ana", ask=None) == []


def test_messages_that_left_stay_in_the_list(root: Path, tmp_path: Path) -> None:
    with Vault.open(root, subject="ana") as vault:
        sent = [(line.when, line.entry) for line in EgressLog(vault.core).entries()]
    repair(root, tmp_path / "new", subject="ana", ask=None)
    with Vault.open(tmp_path / "new", subject="ana") as vault:
        ledger = EgressLog(vault.core)
        assert [(line.when, line.entry) for line in ledger.entries()] == sent
        assert ledger.complete()


def test_nothing_opens_without_the_keys(root: Path, home: Path, tmp_path: Path) -> None:
    shutil.rmtree(home)
    with pytest.raises(VerificationFailed, match="nothing can be saved"):
        repair(root, tmp_path / "new", subject="ana", ask=None)
    assert not (tmp_path / "new").exists()


def run(*words: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(main, [*words, "--json"])
    return result.exit_code, json.loads(result.stdout)


def test_through_the_command(root: Path, tmp_path: Path) -> None:
    of_ana = ("--subject", "ana", "--vault", str(root))
    assert run("vault", "check", *of_ana) == (
        0,
        {"schema": "fedmem.vault.check/1", "data": {"fits": True, "faults": []}},
    )
    (root / "vault.json").unlink()
    code, envelope = run("vault", "check", *of_ana)
    assert (code, envelope["data"]["fits"]) == (6, False)
    assert [fault["part"] for fault in envelope["data"]["faults"]] == ["vault.json"]
    code, envelope = run("vault", "repair", *of_ana, "--to", str(tmp_path / "new"))
    assert (code, envelope["data"]["lost"]) == (0, {})
    assert run("vault", "check", "--subject", "ana", "--vault", str(tmp_path / "new"))[0] == 0
    code, envelope = run("vault", "repair", *of_ana, "--to", str(tmp_path / "new"))
    assert (code, envelope["data"]["error"]) == (4, "VaultExists")
