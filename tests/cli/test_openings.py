"""Openings: the vault keeps one until stdout has received it."""

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from fedmem.cli.main import main
from fedmem.errors import StorageError
from fedmem.vault.vault import BlockInfo
from tests.cli.test_bad_output import erasures, fill_stdout, is_the_opening

Call = Callable[..., tuple[Any, dict[str, Any]]]
ANA = ("--subject", "ana")


def test_an_opening_stays_where_stdout_fails(block: BlockInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_stdout(monkeypatch)
    result = CliRunner().invoke(main, ["block", "delete", "health", *ANA, "--yes", "--json"])
    assert (result.exit_code, result.stdout) == (0, "")
    (one,) = erasures()
    assert one.opening == "waiting"
    assert f"`fedmem receipt opening {one.id}`" in result.stderr


def test_an_opening_that_the_vault_cannot_let_go_of_is_no_failure(
    fedmem: Call, block: BlockInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("The disk is full.")

    monkeypatch.setattr("fedmem.erasure.openings.confirm_delivery", refuse)
    result, envelope = fedmem("block", "delete", "health", *ANA, "--yes")
    assert (result.exit_code, envelope["data"]["state"]) == (0, "completed")
    assert "keeps the opening" in result.stderr
    (one,) = erasures()
    assert one.opening == "waiting"
    result, envelope = fedmem("receipt", "opening", one.id, *ANA)
    assert (result.exit_code, is_the_opening(envelope["data"]["opening"])) == (0, True)
    assert "keeps the opening" in result.stderr
