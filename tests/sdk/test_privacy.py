"""The privacy ledger of a vault: budget, statement and verification."""

from collections.abc import Callable

import pytest

from fedmem.errors import VerificationFailed
from fedmem.policy.policy import Policy
from fedmem.privacy.accounting import epsilon_pld
from fedmem.privacy.spend import SpendEvent
from fedmem.sdk.client import Client
from fedmem.vault.vault import BlockInfo

HEALTH = "My doctor prescribed new tablets for my blood pressure after the visit on Monday."


def opened(**options: object) -> Client:
    return Client.open("ana", keystore="keyfile", **options)


def test_without_the_tight_accountant_the_bound_is_greater(
    monkeypatch: pytest.MonkeyPatch, finish_block: Callable[..., BlockInfo]
) -> None:
    from fedmem.sdk import privacy

    with opened() as client:
        client.add(HEALTH, topic="health")
        finish_block(client._vault, "health", "r1")
        tight = client.privacy.budget()
        monkeypatch.setattr(privacy, "find_spec", lambda _: None)
        loose = client.privacy.budget()
        assert loose.accountant == "rdp"
        assert loose.epsilon >= tight.epsilon
        assert loose.runs[0].epsilon >= tight.runs[0].epsilon


def test_the_statement_agrees_with_the_budget_and_the_check(finish_block: Callable[..., BlockInfo]) -> None:
    with opened() as client:
        client.add(HEALTH, topic="health")
        finish_block(client._vault, "health", "r1")
        statement, budget = client.privacy.report(Policy.load().topics), client.privacy.budget()
        checked = client.privacy.verify()
        assert statement.epsilon_pld == budget.epsilon <= statement.epsilon_rdp
        assert statement.runs == budget.runs
        assert (statement.events, statement.head, statement.noted) == (checked.events, checked.head, checked.noted)
        assert (checked.events, checked.runs, checked.noted) == (2, 1, 2)
        (health,) = [topic for topic in statement.topics if topic.topic == "health"]
        assert health.left == health.budget - budget.epsilon


def test_the_strictest_delta_of_the_runs_is_that_of_the_subject() -> None:
    with opened() as client:
        spend = SpendEvent(0.1, 2.0, 10)
        for topic, delta in (("health", 1e-5), ("notes", 1e-7)):
            plan = {"privacy": {"delta": delta}}
            client._vault.begin_run(topic, "r1", plan, "00", [f"a record of {topic}"], spend.to_dict())
        budget = client.privacy.budget()
        assert budget.delta == 1e-7
        assert [run.delta for run in budget.runs] == [1e-5, 1e-7]
        assert budget.epsilon == epsilon_pld([spend], 1e-7)


def test_a_block_whose_charge_is_missing_does_not_verify(
    finish_block: Callable[..., BlockInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened() as client:
        client.add(HEALTH, topic="health")
        finish_block(client._vault, "health", "r1")
        monkeypatch.setattr("fedmem.sdk.privacy.read_charges", lambda events: [])
        with pytest.raises(VerificationFailed, match="differ"):
            client.privacy.verify()
