"""Runs: charged before they start, resumed only unchanged, their key destroyed before the block is seen (I6)."""

import shutil
from pathlib import Path

import pytest

from fedmem.errors import NothingMatched, Refused, UsageError
from fedmem.vault.store.runs import Runs, TrainingRun

PLAN = {"steps": 3, "noise_multiplier": 1.1}
SPEND = {"sampling_rate": 0.1, "steps": 3, "noise_multiplier": 1.1}


def begin(vault, vaults, *, plan=PLAN, data: str = "digest-1", key: bytes | None = None) -> TrainingRun:
    return vault.begin_run(vaults.TOPIC, "release-1", plan, data, ["r1", "r2"], SPEND, key)


def spends(vault) -> list[dict]:
    return [event.payload for event in vault.ledger.events() if event.kind == "spend"]


@pytest.mark.parametrize("at", range(8))
def test_charge_is_durable_before_begin_returns(vaults, faults, at: int) -> None:
    vault = vaults.create()
    faults.arm("cut", at)
    run = None
    try:
        run = begin(vault, vaults)
    except faults.PowerCut:
        faults.arm("cut", None)
    vault = vaults.reopen(vault)
    charged = [payload["run"] for payload in spends(vault)]
    again = begin(vault, vaults)
    if run is None:
        assert charged in ([], [again.id])  # cut after the charge: it stays, and the run goes on
    else:
        assert charged == [run.id]
        assert (again.resumed, again.id, again.key) == (True, run.id, run.key)
    assert len(spends(vault)) == 1


def test_charge_is_on_the_disk_when_begin_returns(vaults, tmp_path: Path) -> None:
    vault = vaults.create()
    run = begin(vault, vaults)
    shutil.copytree(vault.root, tmp_path / "copy")  # the disk at this instant, nothing flushed or closed
    copy = vaults.open("copy")
    assert [payload["run"] for payload in spends(copy)] == [run.id]
    assert begin(copy, vaults).key == run.key


def test_ledger_names_no_topic_and_no_data_digest(vaults) -> None:
    vault = vaults.create()
    begin(vault, vaults)
    (event,) = vault.ledger.events()
    assert set(event.payload) == {"run", "block", "release", "records", "spend"}
    assert vaults.TOPIC not in repr(event)
    assert "digest-1" not in repr(event.payload)


@pytest.mark.parametrize("change", [{"plan": {"steps": 4}}, {"data": "digest-2"}])
def test_a_changed_run_fails_and_stays_charged(vaults, change: dict) -> None:
    vault = vaults.create()
    old = begin(vault, vaults)
    new = begin(vault, vaults, **change)
    assert (new.resumed, new.id != old.id, new.key != old.key) == (False, True, True)
    assert [payload["run"] for payload in spends(vault)] == [old.id, new.id]
    assert [event.payload["run"] for event in vault.ledger.events() if event.kind == "run_failed"] == [old.id]
    assert old.key not in vault.core.table.keys.values()
    with pytest.raises(NothingMatched):
        vault.finish_run(old, vaults.TOPIC, "release-1", b"rows", 1, 1, 1)


@pytest.mark.parametrize("at", range(14))
def test_a_changed_run_cut_anywhere_never_loses_a_charge(vaults, faults, at: int) -> None:
    vault = vaults.create()
    old = begin(vault, vaults)
    faults.arm("cut", at)
    try:
        new = begin(vault, vaults, data="digest-2")
    except faults.PowerCut:
        new = None
    faults.arm("cut", None)
    vault = vaults.reopen(vault)
    charged = [payload["run"] for payload in spends(vault)]
    assert charged == [old.id] + ([new.id] if new else [])


def test_run_key_is_destroyed_before_the_block_is_visible(vaults, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = vaults.create()
    run = begin(vault, vaults)
    old_epoch = f"epoch-{vault.core.table.epoch}"
    promote, seen = Runs.promote, []

    def watched(self: Runs, block_id: str) -> None:
        seen.append((vault.core.keystore.exists(old_epoch), run.key in vault.core.table.keys.values()))
        promote(self, block_id)

    monkeypatch.setattr(Runs, "promote", watched)
    vault.finish_run(run, vaults.TOPIC, "release-1", b"rows", 1, 1, 1)
    assert seen == [(False, False)]


@pytest.mark.parametrize("at", range(20))
def test_at_no_operation_are_block_and_run_key_both_there(vaults, faults, at: int) -> None:
    vault = vaults.create()
    run = begin(vault, vaults)
    faults.arm("cut", at)
    try:
        vault.finish_run(run, vaults.TOPIC, "release-1", b"rows", 1, 1, 1)
        acknowledged = True
    except faults.PowerCut:
        acknowledged = False
    faults.arm("cut", None)
    vault = vaults.reopen(vault)
    visible, keyed = bool(vault.blocks()), run.key in vault.core.table.keys.values()
    assert visible != keyed  # the old state or the new one
    assert visible or not acknowledged
    if visible:
        assert vault.block_rows(run.block_id) == b"rows"
    else:
        assert begin(vault, vaults).resumed
        assert list((vault.root / "blocks").iterdir()) == []
    assert len(spends(vault)) == 1


def test_failed_run_stays_charged_and_its_key_goes(vaults) -> None:
    vault = vaults.create()
    run = begin(vault, vaults)
    vault.fail_run(run)
    assert run.key not in vault.core.table.keys.values()
    assert len(spends(vault)) == 1
    assert not begin(vaults.reopen(vault), vaults).resumed


def test_finishing_twice_or_a_stranger(vaults) -> None:
    vault = vaults.create()
    run = begin(vault, vaults)
    vault.finish_run(run, vaults.TOPIC, "release-1", b"rows", 1, 1, 1)
    for wrong in (run, TrainingRun("0" * 32, b"k" * 32, False, "1" * 32)):
        with pytest.raises(NothingMatched, match="not open"):
            vault.finish_run(wrong, vaults.TOPIC, "release-1", b"rows", 1, 1, 1)


def test_seeded_key_only_in_a_simulated_vault(vaults) -> None:
    with pytest.raises(Refused, match="simulated"):
        begin(vaults.create(), vaults, key=b"k" * 32)
    simulated = vaults.create("sim", simulated=True)
    assert begin(simulated, vaults, key=b"k" * 32).key == b"k" * 32
    with pytest.raises(UsageError):
        begin(simulated, vaults, key=b"short")


def test_a_spend_must_not_name_the_topic(vaults) -> None:
    vault = vaults.create()
    with pytest.raises(Refused, match="must not name"):
        vault.begin_run(vaults.TOPIC, "release-1", {}, "d", [], {"notes": ["a", {"b": vaults.TOPIC}]})
    assert vault.ledger.events() == []


def test_two_topics_have_runs_of_their_own(vaults) -> None:
    vault = vaults.create()
    one = begin(vault, vaults)
    two = vault.begin_run("other", "release-1", PLAN, "digest-1", ["r1", "r2"], SPEND)
    assert one.id != two.id
    assert begin(vault, vaults).id == one.id
