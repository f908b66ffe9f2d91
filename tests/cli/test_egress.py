"""client egress on a real vault: what is listed, since when, exported, and what an edited ledger gives."""

import json
import os
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fedmem.cli.egress import parse_since
from fedmem.cli.main import main
from fedmem.errors import UsageError
from fedmem.federation import cohorts, device_dp
from fedmem.federation.device_dp import DevicePlan
from fedmem.sdk.places import vault_root
from fedmem.vault.store import egress_log as egress
from fedmem.vault.store.egress_entry import EgressEntry
from fedmem.vault.store.egress_log import EgressLog
from fedmem.vault.vault import BlockInfo, Vault

Call = Callable[..., tuple[Any, dict[str, Any]]]
ANA = ("--subject", "ana")
NOISY = DevicePlan(population=1000, sampling_rate=0.3, rounds=9, noise_multiplier=1.0, run="run-7")
FIXED = DevicePlan(population=1000, cohort_size=300, rounds=9, noise_multiplier=2.0, run="run-8")
UNSAFE = DevicePlan(population=4, rounds=9, unsafe_no_dp=True, unsafe_reason="a toy", run="run-9")


def entry(plan: DevicePlan, number: int) -> EgressEntry:
    spend = {} if plan.unsafe_no_dp else device_dp.spend(plan, rounds=1).to_dict()
    return EgressEntry("train.anchor", number, 4096, f"{number:064x}", plan.run, plan.digest(), spend, plan.delta)


@pytest.fixture
def times(block: BlockInfo, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Three messages left, a day apart; the last one now."""
    moments = [time.time() - days * 86_400 for days in (2, 1, 0)]
    with Vault.open(vault_root("ana"), subject="ana") as vault:
        ledger = EgressLog(vault.core)
        for number, (plan, when) in enumerate(zip((NOISY, FIXED, UNSAFE), moments, strict=True), start=1):
            with monkeypatch.context() as patch:
                patch.setattr(time, "time", lambda when=when: when)
                ledger.enter(entry(plan, number))
            ledger.settle()
    return moments


def test_nothing_left(fedmem: Call, block: BlockInfo) -> None:
    result, envelope = fedmem("client", "egress", *ANA)
    assert (result.exit_code, envelope["schema"]) == (0, "fedmem.client.egress/1")
    account = envelope["data"].pop("epsilon")
    assert envelope["data"] == {"complete": True, "messages": 0, "bytes": 0, "entries": []}
    assert {**account, "adjacency": ""} == {
        "lifetime": 0.0, "delta": 1e-5, "budget": 10.0, "left": 10.0, "federations": 0, "adjacency": "",
    }  # fmt: skip
    assert "No message left" in result.stderr


def test_what_left_is_listed_with_its_epsilon(fedmem: Call, times: list[float]) -> None:
    result, envelope = fedmem("client", "egress", *ANA)
    data = envelope["data"]
    assert (result.exit_code, data["messages"], data["bytes"], data["complete"]) == (0, 3, 3 * 4096, True)
    first, second, third = data["entries"]
    assert {**first, "epsilon": 0, "chain": ""} == {
        "when": first["when"], "message": "train.anchor", "round": 1, "bytes": 4096, "digest": f"{1:064x}",
        "run": "run-7", "plan": NOISY.digest(), "epsilon": 0, "delta": 1e-5, "chain": "",
    }  # fmt: skip
    assert abs(datetime.fromisoformat(first["when"]).timestamp() - times[0]) < 2
    # The figures are those that the federation's own report gives for one round.
    assert first["epsilon"] == pytest.approx(device_dp.figures(NOISY, 1).readers)
    assert second["epsilon"] == pytest.approx(device_dp.figures(FIXED, 1).readers)
    assert third["epsilon"] is None
    assert device_dp.spend(NOISY, 1).to_dict()["mechanism"] != cohorts.MECHANISM


def test_for_people(times: list[float]) -> None:
    result = CliRunner().invoke(main, ["client", "egress", *ANA])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("train.anchor") == 3
    assert "inf" in result.stdout


def test_since_a_date_or_a_time(fedmem: Call, times: list[float]) -> None:
    def rounds(since: datetime | str) -> list[int]:
        _, envelope = fedmem("client", "egress", *ANA, "--since", str(since))
        return [one["round"] for one in envelope["data"]["entries"]]

    last = datetime.fromtimestamp(times[1] - 0.01)  # a datetime is rounded
    assert rounds(last.astimezone().isoformat()) == [2, 3]
    assert rounds((last + timedelta(seconds=1)).isoformat()) == [3]
    assert rounds("2001-01-01") == [1, 2, 3]
    assert rounds("2999-01-01") == []


@pytest.mark.parametrize("since", ["yesterday", "2026-13-01", "", "1763800000", "0001-01-01T00:00+14:00"])
def test_a_date_that_is_none(fedmem: Call, block: BlockInfo, since: str) -> None:
    result, envelope = fedmem("client", "egress", *ANA, "--since", since)
    assert (result.exit_code, envelope["schema"]) == (2, "fedmem.error/1")
    with pytest.raises(UsageError):
        parse_since(since)


def test_export_holds_what_json_shows_and_overwrites_nothing(fedmem: Call, times: list[float], tmp_path: Path) -> None:
    file = tmp_path / "egress.json"
    result, envelope = fedmem("client", "egress", *ANA, "--export", str(file))
    assert result.exit_code == 0
    assert json.loads(file.read_text()) == envelope
    before = file.read_bytes()
    result, _ = fedmem("client", "egress", *ANA, "--export", str(file))
    assert (result.exit_code, file.read_bytes()) == (2, before)


@pytest.mark.parametrize("change", ["cut", "edit", "gone"])
def test_an_edited_or_shortened_ledger_ends_with_6(
    fedmem: Call, times: list[float], tmp_path: Path, change: str
) -> None:
    log = vault_root("ana") / egress.NAME
    lines = log.read_bytes().splitlines(keepends=True)
    if change == "gone":
        os.unlink(log)
    else:
        log.write_bytes(b"".join(lines[:2] if change == "cut" else lines[::-1]))
    result, envelope = fedmem("client", "egress", *ANA, "--export", str(tmp_path / "out.json"))
    assert (result.exit_code, envelope["data"]["exit_code"]) == (6, 6)
    assert not (tmp_path / "out.json").exists()
