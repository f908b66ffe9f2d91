"""Erasure through the SDK: one scope, a plan first, a receipt, and the old state where it cannot start."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedmem import erasure
from fedmem.errors import NothingMatched, PartialErasure, Refused, StorageError, UsageError, VerificationFailed
from fedmem.sdk.client import Client
from fedmem.storage.files import Files
from fedmem.training.release import Release
from fedmem.vault.vault import BlockInfo

HEALTH = "My doctor prescribed new tablets for my blood pressure after the visit on Monday."


@pytest.fixture
def client(finish_block: Callable[..., BlockInfo]) -> Client:
    """Ana's client with a health block and a finance note."""
    client = Client.open("ana", keystore="keyfile")
    client.add(HEALTH, topic="health")
    client.add("The rent of the flat", topic="finance")
    finish_block(client._vault, "health", "r1", scale=1.0)
    return client


def test_plan_then_execute(client: Client) -> None:
    with client:
        planned = client.erase.plan(block="health")
        assert len(client.blocks.list()) == 1
        erased = planned.execute()
        assert (erased.state, erased.verified) == ("completed", True)
        assert erased.receipt.is_file()
        assert erased.not_covered
        assert client.blocks.list() == []
        assert [hit.topic for hit in client.search(HEALTH)] == ["finance"]
        assert [status.state for status in client.erase.status()] == ["completed"]
        statement = erasure.receipt.verify(
            erased.receipt.read_bytes(), (client._vault.root / "device.pub").read_bytes()
        )
        commitment = erasure.receipt.commit(erasure.Scope.block("health"), bytes.fromhex(erased.opening))
        assert statement["predicate"]["scope"]["commitment"] == commitment


def test_an_opening_waits_until_its_delivery_is_confirmed(client: Client) -> None:
    with client:
        erased = client.erase.plan(topic="health").execute()
        assert client.erase.status()[0].opening == "waiting"
        assert client.erase.resume() == []
    with Client.open("ana", keystore="keyfile") as client:
        assert client.erase.opening(erased.id) == erased.opening
        client.erase.confirm_delivery(erased.id)
        assert client.erase.status()[0].opening == "delivered"
        for unknown in (erased.id, "0" * 32):
            with pytest.raises(NothingMatched):
                client.erase.opening(unknown)


def test_epsilon_outlives_the_block(client: Client) -> None:
    with client:
        before = client.privacy.budget().epsilon
        client.erase.plan(subject=True).execute()
        assert client.search(HEALTH) == []
        assert client.privacy.budget().epsilon == before > 0


@pytest.mark.parametrize("scope", [{}, {"block": "health", "topic": "health"}, {"topic": "health", "subject": True}])
def test_exactly_one_scope(client: Client, scope: dict[str, str]) -> None:
    with client, pytest.raises(UsageError):
        client.erase.plan(**scope)


def test_nothing_in_scope(client: Client) -> None:
    with client, pytest.raises(NothingMatched):
        client.erase.plan(topic="no-such")


def test_a_plan_that_no_longer_holds(client: Client) -> None:
    with client:
        planned = client.erase.plan(topic="health")
        client.add("One more visit to the doctor", topic="health")
        with pytest.raises(Refused):
            planned.execute()
        assert len(client.blocks.list()) == 1


def test_partial_is_an_error_and_resumes(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise StorageError("The disk refused.")

    with client:
        with monkeypatch.context() as patch:
            patch.setattr(Files, "unlink", fail)
            with pytest.raises(PartialErasure):
                client.erase.plan(topic="health").execute()
        assert [outcome.state for outcome in client.erase.resume()] == ["completed"]


def test_residue_is_an_error(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure, "verify", lambda *_: erasure.Verification("x", {"somewhere": ["something"]}))
    with client, pytest.raises(VerificationFailed):
        client.erase.plan(topic="health").execute()


def test_after_an_erasure_answers_are_those_of_a_vault_that_never_held_it(
    release: Release, finish_block: Callable[..., BlockInfo], tmp_path: Path
) -> None:
    def logits(client: Client) -> torch.Tensor:
        from fedmem.device.answering import Answerer

        answerer = Answerer(release)
        sources = answerer.sources((0, 1), client._vault, client._matching("health"))
        with torch.no_grad(), answerer.memory.using(*sources):
            return answerer.model(torch.tensor([[1, 40, 41, 42]])).logits

    with Client.open("ben", path=tmp_path / "never", keystore="keyfile", release=release) as client:
        expected = logits(client)
    with Client.open("ana", path=tmp_path / "held", keystore="keyfile", release=release) as client:
        client.add(HEALTH, topic="health")
        finish_block(client._vault, "health", release.digest, scale=1.0)
        assert not torch.equal(logits(client), expected)
        client.erase.plan(topic="health").execute()
        assert torch.equal(logits(client), expected)
