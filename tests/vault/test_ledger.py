"""The ledger: append-only, and every change of the past is noticed."""

import time
from typing import Any

import pytest
from sqlalchemy import text

from fedmem import erasure
from fedmem.errors import UsageError, VerificationFailed


def test_events_come_back_in_order(vaults) -> None:
    vault = vaults.create()
    for number in range(3):
        assert vault.ledger.append("spend", {"n": number}).seq == number
    vault = vaults.reopen(vault)
    events = vault.ledger.events()
    assert [(event.seq, event.kind, event.payload) for event in events] == [(n, "spend", {"n": n}) for n in range(3)]
    assert vault.ledger.verify() == events[-1].digest


def test_an_empty_ledger_verifies(vaults) -> None:
    assert vaults.create().ledger.verify() == ""


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM events WHERE seq = 1",
        "DELETE FROM events WHERE seq = 0",
        "UPDATE events SET sealed = (SELECT sealed FROM events WHERE seq = 0) WHERE seq = 1",
        "UPDATE events SET digest = (SELECT digest FROM events WHERE seq = 0) WHERE seq = 1",
        "UPDATE events SET seq = seq + 10 WHERE seq = 2",
    ],
)
def test_a_changed_past_is_noticed(vaults, change: str) -> None:
    vault = vaults.create()
    for number in range(3):
        vault.ledger.append("spend", {"n": number})
    with vault.core.turn(), vault.core.database.session() as session:
        session.execute(text(change))
    with pytest.raises(VerificationFailed):
        vault.ledger.verify()


def test_what_is_not_json_is_refused(vaults) -> None:
    vault = vaults.create()
    for bad in ({"x": float("nan")}, {"x": object()}, {"x": b"bytes"}):
        with pytest.raises(UsageError):
            vault.ledger.append("spend", bad)
    assert vault.ledger.events() == []


SPEND = {"mechanism": "poisson-gaussian/1", "sampling_rate": 0.1, "noise_multiplier": 2.0, "steps": 10}


def learned(vaults: Any, vault: Any, data: str = "digest-1") -> Any:
    """One run from its charge to its block: two events, the head noted."""
    run = vault.begin_run(vaults.TOPIC, "release-1", {}, data, ["r1"], SPEND)
    vault.finish_run(run, vaults.TOPIC, "release-1", b"rows" * 99, 2, 4, 8)
    return run


def changed(vault: Any, *statements: str) -> None:
    """Change the database under the vault, as someone with the file would."""
    with vault.core.turn(), vault.core.database.session() as session:
        for statement in statements:
            session.execute(text(statement))


def forget_notes(vault: Any) -> None:
    """The keystore knows nothing about the ledger, as after somebody deleted the note."""
    (vault.core.keystore._folder / "ledger.note").unlink()


@pytest.mark.parametrize("cut", ["DELETE FROM events", "DELETE FROM events WHERE seq >= 2"])
def test_without_a_note_the_runs_tell_of_a_cut(vaults, cut: str) -> None:
    vault = vaults.create()
    learned(vaults, vault)
    learned(vaults, vault, "digest-2")
    changed(vault, cut)
    forget_notes(vault)
    vault = vaults.reopen(vault)
    with pytest.raises(VerificationFailed, match="end was cut off"):
        vault.ledger.events()


def test_an_open_run_without_its_charge_is_a_cut_and_a_wish_is_not(vaults) -> None:
    vault = vaults.create()
    vault.begin_run(vaults.TOPIC, "release-1", {}, "digest-1", ["r1"], SPEND)
    changed(vault, "UPDATE runs SET state = 'wanted'", "DELETE FROM events")
    forget_notes(vault)
    assert vault.ledger.events() == []
    changed(vault, "UPDATE runs SET state = 'open'")
    with pytest.raises(VerificationFailed):
        vault.ledger.events()


def test_an_event_of_another_vault_does_not_open(vaults) -> None:
    mine, other = vaults.create("mine"), vaults.create("other")
    for vault in (mine, other):
        vault.ledger.append("spend", {"n": 0})
    with other.core.database.session() as session:
        digest, sealed = session.execute(text("SELECT digest, sealed FROM events")).one()
    with mine.core.turn(), mine.core.database.session() as session:
        session.execute(text("UPDATE events SET digest = :d, sealed = :s"), {"d": digest, "s": sealed})
    with pytest.raises(VerificationFailed):
        mine.ledger.events()


@pytest.mark.parametrize("column", ["digest", "sealed"])
def test_a_bit_anywhere_in_an_event(vaults, column: str) -> None:
    vault = vaults.create()
    vault.ledger.append("spend", {"n": 0})
    with vault.core.turn(), vault.core.database.session() as session:
        whole = session.execute(text(f"SELECT CAST({column} AS BLOB) FROM events")).scalar_one()
    kept = "CAST(:v AS TEXT)" if column == "digest" else ":v"
    for at in range(0, len(whole), 5):
        for bit in (1, 128):  # the greater one leaves no UTF-8
            flipped = whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]
            with vault.core.turn(), vault.core.database.session() as session:
                session.execute(text(f"UPDATE events SET {column} = {kept}"), {"v": flipped})
            with pytest.raises(VerificationFailed):
                vault.ledger.events()


@pytest.mark.parametrize("column", ["digest", "sealed"])
@pytest.mark.parametrize("noted", [True, False])
def test_a_column_of_another_kind(vaults, column: str, noted: bool) -> None:
    vault = vaults.create()
    learned(vaults, vault)
    if not noted:
        forget_notes(vault)
    for value in ("''", "x''", "7", "'ä'", "CAST(x'ff' AS TEXT)", "1.5"):
        changed(vault, f"UPDATE events SET {column} = {value} WHERE seq = 1")
        with pytest.raises(VerificationFailed):
            vault.ledger.events()
    with pytest.raises(VerificationFailed):
        vaults.reopen(vault).ledger.events()


def test_a_clock_set_back_changes_nothing(vaults, monkeypatch: pytest.MonkeyPatch) -> None:
    vaults_events = []
    for name, step in (("forward", 60.0), ("back", -3e8)):
        hours = [1.8e9]

        def clock(hours: list[float] = hours, step: float = step) -> float:
            hours[0] += step
            return hours[0]

        monkeypatch.setattr(time, "time", clock)
        vault = vaults.create(name)
        learned(vaults, vault)
        run = vault.begin_run(vaults.TOPIC, "release-1", {}, "digest-2", ["r1"], SPEND)
        vault = vaults.reopen(vault)
        assert vault.begin_run(vaults.TOPIC, "release-1", {}, "digest-2", ["r1"], SPEND).id == run.id  # resumed
        vault.fail_run(run)
        names: dict[str, int] = {}
        events = [(event.seq, event.kind, numbered(event.payload, names)) for event in vault.ledger.events()]
        vaults_events.append(events)
    assert vaults_events[0] == vaults_events[1]
    assert len(vaults_events[0]) == 4


def numbered(value: Any, names: dict[str, int]) -> Any:
    """`value` with each random id replaced by the order of its first appearance; a time would stay and differ."""
    if isinstance(value, dict):
        return {key: numbered(item, names) for key, item in value.items()}
    if isinstance(value, str) and len(value) == 32:
        return names.setdefault(value, len(names))
    return value


def test_erasing_everything_leaves_every_event(vaults) -> None:
    vault = vaults.create()
    vault.add_records(vaults.records())
    learned(vaults, vault)
    vault.begin_run(vaults.TOPIC, "release-1", {}, "digest-2", ["r1"], SPEND)
    before = vault.ledger.events()
    erasure.execute(vault, planned := erasure.plan(vault, erasure.Scope.subject()), planned.digest)
    vault = vaults.reopen(vault)
    after = vault.ledger.events()
    assert after[: len(before)] == before
    assert [event.kind for event in after[len(before) :]] == ["erased"]
    assert not vault.runs_by_id(vault.ids_of(vaults.TOPIC))
