"""privacy budget, report and ledger verify: what they say, and no figure of a ledger that does not hold."""

import errno
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fedmem.cli.main import main, run_guarded
from fedmem.cli.output import CommandSession
from fedmem.paths import slots_dir
from fedmem.privacy.plan import PrivacyPlan
from fedmem.sdk.places import vault_root
from fedmem.vault.vault import BlockInfo, Vault

Call = Callable[..., tuple[Any, dict[str, Any]]]
ANA = ("--subject", "ana")
COMMANDS = (("budget",), ("report",), ("ledger", "verify"))


def edit(*statements: str) -> None:
    """Change ana's database as someone with the file would."""
    with sqlite3.connect(vault_root("ana") / "vault.db", isolation_level=None) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def forget_note() -> None:
    """The keystore knows of no event any more."""
    for note in slots_dir().rglob("ledger.note"):
        note.unlink()


def test_the_budget_names_each_run(fedmem: Call, block: BlockInfo) -> None:
    (run,) = fedmem("privacy", "budget", *ANA)[1]["data"]["runs"]
    assert (run["topic"], run["state"], run["block"], run["run"]) == ("health", "finished", block.id, block.run_id)


def test_the_report_as_json(fedmem: Call, block: BlockInfo) -> None:
    result, envelope = fedmem("privacy", "report", *ANA)
    assert (result.exit_code, envelope["schema"]) == (0, "fedmem.privacy.report/1")
    data = envelope["data"]
    assert data["adjacency"] == "add or remove one record"
    assert (data["delta"], data["html"], data["simulated"], data["events"]) == (1e-5, None, False, 2)
    assert data["unit"]
    assert data["public"]
    assert data["not_covered"]
    assert 0 < data["epsilon_pld"] <= data["epsilon_rdp"] < 8
    assert data["epsilon_pld"] == fedmem("privacy", "budget", *ANA)[1]["data"]["epsilon"]
    assert data["head"] == fedmem("privacy", "ledger", "verify", *ANA)[1]["data"]["head"]
    topics = {one["topic"]: one for one in data["topics"]}
    assert topics["health"]["epsilon"] == data["epsilon_pld"]
    assert topics["health"]["left"] == topics["health"]["budget"] - data["epsilon_pld"]
    assert topics["finance"]["epsilon"] == 0  # it holds a record that was in no run
    assert topics["finance"]["left"] == topics["finance"]["budget"]
    (run,) = data["runs"]
    found = run["release"], run["sampling_rate"], run["noise_multiplier"], run["steps"], run["state"]
    assert found == ("r" * 64, 0.1, 2.0, 10, "finished")


def test_the_report_for_people(block: BlockInfo) -> None:
    result = CliRunner().invoke(main, ["privacy", "report", *ANA])
    assert (result.exit_code, result.stderr) == (0, "")
    for text in (block.id, "health", "add or remove one record", "not covered", "1e-05"):
        assert text in result.stdout


def test_the_page_is_for_its_owner_only(fedmem: Call, block: BlockInfo, tmp_path: Path) -> None:
    file, before = tmp_path / "privacy.html", os.umask(0o022)
    os.umask(before)
    result, envelope = fedmem("privacy", "report", *ANA, "--html", str(file))
    assert (result.exit_code, envelope["data"]["html"]) == (0, str(file))
    page = file.read_text("utf-8")
    assert file.stat().st_mode & 0o777 == 0o600
    assert os.umask(before) == before
    for text in (block.id, "health", envelope["data"]["head"], "<svg"):
        assert text in page
    for private in ("zebrafinch", "dose", "another visit", "the rent"):
        assert private not in page
    result, _ = fedmem("privacy", "report", *ANA, "--html", str(file))
    assert (result.exit_code, file.read_text("utf-8")) == (2, page)
    assert fedmem("privacy", "report", *ANA, "--html", str(tmp_path / "no" / "p.html"))[0].exit_code == 2


def test_a_full_disk_leaves_no_half_page(
    fedmem: Call, block: BlockInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        result, envelope = fedmem("privacy", "report", *ANA, "--html", str(tmp_path / "p.html"))
    assert (result.exit_code, envelope["data"]["error"]) == (11, "StorageError")
    assert list(tmp_path.glob("*.html")) == []


def test_budgets_are_those_of_the_policy_given(fedmem: Call, block: BlockInfo, tmp_path: Path) -> None:
    file = tmp_path / "strict.toml"
    topic = '[topics.health]\nepsilon = 0.1\ndelta = 1e-6\n[[topics.health.rules]]\nkind = "keywords"\nname = "w"\n'
    file.write_text(f'schema = "fedmem.policy/1"\nname = "strict"\n{topic}at_least = 1\nwords = ["dose"]\n')
    topics = fedmem("privacy", "report", *ANA, "--policy", str(file))[1]["data"]["topics"]
    (health,) = [one for one in topics if one["topic"] == "health"]
    assert (health["budget"], health["delta"], health["left"]) == (0.1, 1e-6, 0)
    assert health["epsilon"] > fedmem("privacy", "budget", *ANA)[1]["data"]["epsilon"]  # at the stricter δ
    assert fedmem("privacy", "report", *ANA, "--policy", "no-such")[0].exit_code == 2


def test_verify(fedmem: Call, block: BlockInfo) -> None:
    result, envelope = fedmem("privacy", "ledger", "verify", *ANA)
    assert (result.exit_code, envelope["schema"]) == (0, "fedmem.privacy.ledger.verify/1")
    with Vault.open(vault_root("ana"), subject="ana", write=False) as vault:
        head = vault.ledger.events()[-1].digest
    assert envelope["data"] == {"head": head, "events": 2, "runs": 1, "noted": 2}
    result = CliRunner().invoke(main, ["privacy", "ledger", "verify", *ANA])
    assert (result.exit_code, result.stderr) == (0, "")
    assert head in result.stdout


def test_a_vault_that_spent_nothing(fedmem: Call) -> None:
    Vault.create(vault_root("ana"), subject="ana").close()
    data = fedmem("privacy", "ledger", "verify", *ANA)[1]["data"]
    assert data == {"head": "", "events": 0, "runs": 0, "noted": None}
    data = fedmem("privacy", "report", *ANA)[1]["data"]
    assert (data["epsilon_pld"], data["epsilon_rdp"], data["runs"]) == (0, 0, [])
    assert CliRunner().invoke(main, ["privacy", "report", *ANA]).exit_code == 0
    assert CliRunner().invoke(main, ["privacy", "ledger", "verify", *ANA]).stderr == ""


def test_no_noise_is_told_as_not_bounded(fedmem: Call, block: BlockInfo) -> None:
    with Vault.open(vault_root("ana"), subject="ana") as vault:
        ids = [record.id for record in vault.records("finance")]
        spend = {"mechanism": "poisson-gaussian/1", "sampling_rate": 0.1, "noise_multiplier": 0.0, "steps": 1}
        vault.begin_run("finance", "r" * 64, {}, "01", ids, spend)
    data = fedmem("privacy", "report", *ANA)[1]["data"]
    assert (data["epsilon_pld"], data["epsilon_rdp"]) == (None, None)
    assert "not bounded" in CliRunner().invoke(main, ["privacy", "report", *ANA]).stdout


DAMAGE = {
    "dropped": ["DROP TABLE events"],
    "emptied": ["DELETE FROM events"],
    "shortened": ["DELETE FROM events WHERE seq = 1"],
    "first event gone": ["DELETE FROM events WHERE seq = 0"],
    "a byte of a payload": ["UPDATE events SET sealed = CAST(sealed || x'00' AS BLOB) WHERE seq = 0"],
    "a byte of a digest": ["UPDATE events SET digest = 'f' || substr(digest, 2) || 'f' WHERE seq = 1"],
    "no text in a digest": ["UPDATE events SET digest = CAST(x'ff' AS TEXT) WHERE seq = 0"],
    "reordered": ["UPDATE events SET seq = seq + 10", "UPDATE events SET seq = 11 - seq"],
    "payload swapped": ["UPDATE events SET sealed = (SELECT sealed FROM events WHERE seq = 1) WHERE seq = 0"],
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("noted", [True, False])
def test_a_damaged_ledger_ends_with_6_and_a_sentence(
    fedmem: Call, block: BlockInfo, tmp_path: Path, damage: str, noted: bool
) -> None:
    edit(*DAMAGE[damage])
    if not noted:
        forget_note()
    for words in COMMANDS if noted else COMMANDS[1:]:  # `budget` does not ask whether a run's end is missing
        html = ("--html", str(tmp_path / "p.html")) if words == ("report",) else ()
        result, envelope = fedmem("privacy", *words, *ANA, *html)
        assert result.exit_code == 6
        assert envelope["data"]["error"] in ("VerificationFailed", "RolledBack")
        assert envelope["data"]["message"] == result.stderr.strip()
        assert result.stderr.count("\n") == 1
    assert list(tmp_path.glob("*.html")) == []


def test_a_missing_database_is_a_missing_ledger(fedmem: Call, block: BlockInfo) -> None:
    (vault_root("ana") / "vault.db").unlink()
    for words in COMMANDS:
        result, envelope = fedmem("privacy", *words, *ANA)
        assert (result.exit_code, envelope["data"]["error"]) == (6, "VerificationFailed")


@pytest.mark.parametrize(
    "change", ["UPDATE runs SET state = 'failed'", "DELETE FROM events WHERE seq = 1", "UPDATE blocks SET state = 'x'"]
)
def test_what_the_vault_holds_must_fit_the_ledger(fedmem: Call, block: BlockInfo, change: str) -> None:
    forget_note()
    assert fedmem("privacy", "ledger", "verify", *ANA)[0].exit_code == 0
    edit(change)
    result, envelope = fedmem("privacy", "ledger", "verify", *ANA)
    expected = (0, None) if "blocks" in change else (6, "VerificationFailed")  # a block that is not shown is none
    assert (result.exit_code, envelope["data"].get("error")) == expected


def test_a_block_that_was_never_charged(fedmem: Call, block: BlockInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    for stranger in (replace(block, run_id="5e" * 16), replace(block, id="5e" * 16)):
        monkeypatch.setattr(Vault, "blocks", lambda _, stranger=stranger: [stranger])
        result, envelope = fedmem("privacy", "ledger", "verify", *ANA)
        assert (result.exit_code, envelope["data"]["error"]) == (6, "VerificationFailed")


def test_a_keystore_that_knows_no_head_is_named(fedmem: Call, block: BlockInfo) -> None:
    forget_note()
    result, envelope = fedmem("privacy", "ledger", "verify", *ANA)
    assert (result.exit_code, envelope["data"]["noted"]) == (0, None)
    assert "notes no head" in result.stderr


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        (lambda: PrivacyPlan.small(record_cap=10_001), "declare a smaller delta or cap"),
        (lambda: PrivacyPlan(0.1, 5, 0.1, 1.0, 1.0, 1.01e-3, 100), "declare a smaller delta or cap"),
        (lambda: PrivacyPlan(1.0, 1, 0.1, 1.0, 1.0, 1e-5, 100).calibrate(1e-7), "No noise brings this plan"),
    ],
)
def test_a_plan_that_protects_nobody_ends_with_4_and_a_sentence(
    plan: Callable[[], PrivacyPlan], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_guarded(plan, CommandSession()) == 4
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_a_clock_set_back_is_no_matter(fedmem: Call, block: BlockInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fedmem("privacy", "report", *ANA)[1]["data"]
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 0.0)
        assert fedmem("privacy", "report", *ANA)[1]["data"] == before
        with Vault.open(vault_root("ana"), subject="ana") as vault:
            ids = [record.id for record in vault.records("health")]
            spend = {"mechanism": "poisson-gaussian/1", "sampling_rate": 0.1, "noise_multiplier": 2.0, "steps": 10}
            vault.fail_run(vault.begin_run("health", "r" * 64, {}, "02", ids, spend))
    after = fedmem("privacy", "report", *ANA)[1]["data"]
    assert [run["state"] for run in after["runs"]] == ["finished", "failed"]  # in the order of their charges
    assert after["events"] == before["events"] + 2
    assert before["epsilon_pld"] < after["epsilon_pld"] <= 2 * before["epsilon_pld"]
    assert fedmem("privacy", "ledger", "verify", *ANA)[0].exit_code == 0


def test_erasing_everything_leaves_the_ledger_whole(fedmem: Call, block: BlockInfo) -> None:
    before = fedmem("privacy", "report", *ANA)[1]["data"]
    planned = fedmem("erase", "plan", *ANA, "--whole-subject")[1]["data"]
    digest = CliRunner().invoke(main, ["erase", "plan", *ANA, "--whole-subject"]).stdout.split()[-1]
    assert planned["counts"]
    assert fedmem("erase", "run", *ANA, "--whole-subject", "--digest", digest, "--yes")[0].exit_code == 0
    after = fedmem("privacy", "report", *ANA)[1]["data"]
    assert after["events"] == before["events"] + 1
    assert (after["epsilon_pld"], after["epsilon_rdp"]) == (before["epsilon_pld"], before["epsilon_rdp"])
    (run,) = after["runs"]
    assert (run["run"], run["topic"], run["state"]) == (block.run_id, None, "erased")
    assert fedmem("privacy", "ledger", "verify", *ANA)[0].exit_code == 0
