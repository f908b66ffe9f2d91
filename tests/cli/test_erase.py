"""`erase` on a real vault: what is run is what was seen."""

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from fedmem.cli.main import main
from fedmem.sdk.places import vault_root
from fedmem.vault.vault import ALL, BlockInfo, Vault

Call = Callable[..., tuple[Any, dict[str, Any]]]
ANA = ("--subject", "ana")


def records(topic: str) -> list[str]:
    with Vault.open(vault_root("ana"), subject="ana", write=False) as vault:
        return [record.id for record in vault.records(topic)]


def planned(fedmem: Call, *scope: str) -> str:
    result, envelope = fedmem("erase", "plan", *ANA, *scope)
    assert (result.exit_code, envelope["schema"]) == (0, "fedmem.erase.plan/1")
    digest: str = envelope["data"]["plan"]
    return digest


def run(fedmem: Call, digest: str, *words: str) -> tuple[Any, dict[str, Any]]:
    return fedmem("erase", "run", *ANA, "--digest", digest, "--yes", *words)


def test_plan_changes_nothing_and_run_does_what_it_said(fedmem: Call, block: BlockInfo) -> None:
    before = {path: path.read_bytes() for path in vault_root("ana").rglob("*") if path.name == "table.fmk"}
    digest = planned(fedmem, "--block", "health")
    assert all(path.read_bytes() == data for path, data in before.items())
    result, envelope = run(fedmem, digest, "--block", "health", "--dry-run")
    assert (result.exit_code, envelope["data"]["state"]) == (0, "planned")
    result, envelope = run(fedmem, digest, "--block", "health")
    assert (result.exit_code, envelope["schema"]) == (0, "fedmem.erase.run/1")
    assert (envelope["data"]["state"], envelope["data"]["verified"]) == ("completed", True)
    erasure = envelope["data"]["id"]
    for deep in ((), ("--deep",)):
        result, envelope = fedmem("erase", "verify", erasure, *ANA, *deep)
        assert (result.exit_code, envelope["data"]["clean"]) == (0, True)
    assert "files-under-root" in envelope["data"]["found"]


def test_another_digest_or_a_changed_vault_is_refused(fedmem: Call, block: BlockInfo) -> None:
    digest = planned(fedmem, "--topic", "health")
    assert run(fedmem, "é", "--topic", "health")[0].exit_code == 4
    assert run(fedmem, digest, "--topic", "finance")[0].exit_code == 4
    fedmem("erase", "keep", "health", "3", *ANA)
    result, envelope = run(fedmem, digest, "--topic", "health")
    assert (result.exit_code, envelope["data"]["error"]) == (4, "Refused")
    assert len(records("health")) == 2
    assert fedmem("erase", "run", *ANA, "--topic", "health", "--yes")[0].exit_code == 2  # no digest


def test_a_record_needs_a_choice_and_takes_the_block(fedmem: Call, block: BlockInfo) -> None:
    one, other = records("health")
    assert fedmem("erase", "plan", *ANA, "--record", one)[0].exit_code == 2
    words = ("--record", one, "--blocks", "delete")
    envelope = fedmem("erase", "plan", *ANA, *words)[1]
    assert envelope["data"]["blocks"] == [block.id]
    assert run(fedmem, envelope["data"]["plan"], *words)[0].exit_code == 0
    assert records("health") == [other]
    assert fedmem("block", "list", *ANA)[1]["data"]["blocks"] == []
    # The block of this test was not learned, so it could not be trained anew; without a release nothing can.
    assert fedmem("erase", "plan", *ANA, "--record", "0" * 32, "--blocks", "delete")[0].exit_code == 3


def test_retraining_without_a_release_is_refused(fedmem: Call, block: BlockInfo) -> None:
    words = ("--record", records("health")[0], "--blocks", "retrain")
    result, envelope = run(fedmem, planned(fedmem, *words), *words)
    assert (result.exit_code, envelope["data"]["error"]) == (4, "Refused")
    assert len(records("health")) == 2


@pytest.mark.parametrize(
    "scope", [(), ("--block", "health", "--topic", "health"), ("--whole-subject", "--blocks", "delete")]
)
def test_scopes_that_make_no_sense(fedmem: Call, block: BlockInfo, scope: tuple[str, ...]) -> None:
    assert fedmem("erase", "plan", *ANA, *scope)[0].exit_code == 2


def test_before_a_date_and_the_whole_subject(fedmem: Call, block: BlockInfo) -> None:
    assert fedmem("erase", "plan", *ANA, "--before", "2020-01-01", "--blocks", "delete")[0].exit_code == 3
    assert fedmem("erase", "plan", *ANA, "--before", "soon", "--blocks", "delete")[0].exit_code == 2
    words = ("--before", "2990-01-01", "--blocks", "delete")
    assert fedmem("erase", "plan", *ANA, *words)[1]["data"]["counts"]["record"] == 3
    assert run(fedmem, planned(fedmem, "--whole-subject"), "--whole-subject")[0].exit_code == 0
    with Vault.open(vault_root("ana"), subject="ana") as vault:
        assert vault.records(ALL) == []


def test_keep_and_due(fedmem: Call, block: BlockInfo) -> None:
    from sqlalchemy import update

    from fedmem.vault.store.database import RecordRow

    due = ("erase", "due", *ANA, "--blocks", "delete")
    assert fedmem("erase", "keep", *ANA)[1]["data"] == {"days": {}}
    assert fedmem(*due, "--yes")[0].exit_code == 3
    assert fedmem("erase", "keep", "health", "30", *ANA)[1]["data"] == {"days": {"health": 30.0}}
    assert fedmem("erase", "keep", *ANA)[1]["data"] == {"days": {"health": 30.0}}
    assert fedmem("erase", "keep", "health", "long", *ANA)[0].exit_code == 2
    assert fedmem(*due, "--yes")[0].exit_code == 3
    old = records("health")[0]
    with (
        Vault.open(vault_root("ana"), subject="ana") as vault,
        vault.core.writing(),
        vault.core.database.session() as session,
    ):
        session.execute(update(RecordRow).where(RecordRow.id == old).values(created=1.0))
    assert fedmem(*due, "--dry-run")[1]["data"]["counts"]["record"] == 1
    assert fedmem(*due)[0].exit_code == 4  # not confirmed
    result, envelope = fedmem(*due, "--yes")
    assert (result.exit_code, envelope["data"]["state"]) == (0, "completed")
    assert len(records("health")) == 1
    assert fedmem("erase", "keep", "health", "forever", *ANA)[1]["data"] == {"days": {}}


def test_cancelling_what_is_not_pending(fedmem: Call, block: BlockInfo) -> None:
    digest = planned(fedmem, "--topic", "finance")
    erasure = run(fedmem, digest, "--topic", "finance")[1]["data"]["id"]
    assert fedmem("erase", "cancel", erasure, *ANA)[0].exit_code == 4
    assert fedmem("erase", "cancel", "0" * 32, *ANA)[0].exit_code == 3
    assert fedmem("erase", "verify", "0" * 32, *ANA)[0].exit_code == 3


def test_verify_that_finds_something_keeps_its_envelope(fedmem: Call, block: BlockInfo) -> None:
    root = vault_root("ana")
    copy = (root / "blocks" / f"{block.id}.fmb").read_bytes()
    erasure = run(fedmem, planned(fedmem, "--topic", "health"), "--topic", "health")[1]["data"]["id"]
    (root / "receipts" / "left").write_bytes(copy)
    assert fedmem("erase", "verify", erasure, *ANA)[0].exit_code == 0
    result, envelope = fedmem("erase", "verify", erasure, *ANA, "--deep")
    assert (result.exit_code, envelope["schema"]) == (6, "fedmem.erase.verify/1")
    assert "receipts/left" in envelope["data"]["found"]["files-under-root"][0]


def test_for_people(block: BlockInfo) -> None:
    words = ["erase", "plan", *ANA, "--record", records("health")[0], "--blocks", "delete"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0
    assert "none is trained anew" in result.stdout
    digest = result.stdout.split("digest")[1].split()[0]
    result = CliRunner().invoke(main, [*words[:1], "run", *words[2:], "--digest", digest, "--yes"])
    assert result.exit_code == 0
    assert "not covered" in result.stdout
