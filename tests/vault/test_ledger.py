"""The ledger: append-only, and every change of the past is noticed."""

import pytest
from sqlalchemy import text

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
    with vault.core.database.session() as session:
        session.execute(text(change))
    with pytest.raises(VerificationFailed):
        vault.ledger.verify()


def test_what_is_not_json_is_refused(vaults) -> None:
    vault = vaults.create()
    for bad in ({"x": float("nan")}, {"x": object()}, {"x": b"bytes"}):
        with pytest.raises(UsageError):
            vault.ledger.append("spend", bad)
    assert vault.ledger.events() == []
