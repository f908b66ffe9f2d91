"""Forgetting a record through the client: the block is trained anew without it, within the budget, or not at all."""

from collections.abc import Iterator

import pytest
from safetensors.torch import load

from fedmem.device import retraining as relearn
from fedmem.device.learning import LearnSettings, learn_topic
from fedmem.device.retraining import Retrainer
from fedmem.errors import BudgetExceeded, PartialErasure, Refused, VersionMismatch
from fedmem.policy.policy import Policy
from fedmem.privacy.plan import PrivacyPlan
from fedmem.sdk.client import Client
from fedmem.training.release import Release
from fedmem.vault.vault import BlockInfo

NOTES = [
    "My doctor prescribed new tablets for my blood pressure after the visit on Monday.",
    "The nurse at the clinic measured my fever and the pain in my shoulder.",
    "I was diagnosed with hypertension and take the medication twice a day.",
]
SETTINGS = LearnSettings(width=4, length=16)
TINY = PrivacyPlan(sampling_rate=0.5, steps=2, clip=0.1, noise_multiplier=4.0, divisor=4.0, delta=1e-5, record_cap=100)


@pytest.fixture
def client(release: Release) -> Iterator[Client]:
    with Client.open("ana", keystore="keyfile", release=release) as client:
        for note in NOTES:
            client.add(note, topic="health")
        yield client


def learn(client: Client, release: Release, plan: PrivacyPlan = TINY) -> BlockInfo:
    return learn_topic(client._vault, release, client._policy.topics["health"], plan, settings=SETTINGS)


def records(client: Client) -> list[str]:
    return [record.id for record in client._vault.records("health")]


def test_the_block_is_trained_anew_and_charged_again(client: Client, release: Release) -> None:
    old = learn(client, release)
    before = client.privacy.budget().epsilon
    first, *rest = records(client)
    planned = client.erase.plan(record=[first], blocks="retrain")
    assert (planned.blocks, planned.retrained) == ([old.id], 1)
    erased = planned.execute()
    (new,) = client.blocks.list()
    assert erased.retrained == [new.id]
    assert (new.release, new.width, new.id != old.id) == (old.release, old.width, True)
    spends = [event.payload for event in client._vault.ledger.events() if event.kind == "spend"]
    assert [spend["records"] for spend in spends] == [[first, *rest], rest]
    assert spends[0]["spend"] == spends[1]["spend"]  # the plan of the run that it repeats
    assert client.privacy.budget().epsilon > before  # those who remain were used twice
    assert client.erase.status()[0].retraining == "done"


def test_retraining_is_the_training_of_a_vault_that_never_held_the_record(
    client: Client, release: Release, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    """With the noise off, so that equal data give equal rows: an oracle for what took part."""
    silent = PrivacyPlan(**TINY.to_dict() | {"noise_multiplier": 0.0, "sampling_rate": 1.0})
    generous = {name: topic.__class__(name, float("inf"), topic.delta) for name, topic in client._policy.topics.items()}
    monkeypatch.setattr(client._policy, "topics", generous)
    learn(client, release, silent)
    client.erase.plan(record=records(client)[:1], blocks="retrain").execute()
    (block,) = client.blocks.list()
    with Client.open("ben", path=tmp_path / "never", keystore="keyfile", release=release) as never:
        for note in NOTES[1:]:
            never.add(note, topic="health")
        monkeypatch.setattr(never._policy, "topics", generous)
        other = learn(never, release, silent)
        expected = load(bytes(never._vault.block_rows(other.id)))["rows"]
    found = load(bytes(client._vault.block_rows(block.id)))["rows"]
    assert found.abs().max() > 0
    assert bool((found == expected).all())


def test_over_budget_it_is_refused_before_anything_is_destroyed(client: Client, release: Release) -> None:
    learn(client, release, TINY.calibrate(client._policy.topics["health"].epsilon))
    with pytest.raises(BudgetExceeded) as caught:
        client.erase.plan(record=records(client)[:1], blocks="retrain")
    assert caught.value.exit_code == 4
    assert len(records(client)) == 3
    assert len(client.blocks.list()) == 1
    client.erase.plan(record=records(client)[:1], blocks="delete").execute()
    assert client.blocks.list() == []
    assert len(records(client)) == 2


def test_what_cannot_be_repeated_is_refused(client: Client, release: Release, finish_block) -> None:
    finish_block(client._vault, "health", release.digest)  # sealed by something else than learning
    first = records(client)[:1]
    with pytest.raises(Refused, match="not made by learning"):
        client.erase.plan(record=first, blocks="retrain")
    learn(client, release)
    vault, policy = client._vault, client._policy
    with pytest.raises(VersionMismatch):
        client.erase.__class__(vault, Retrainer(_other(release), policy)).plan(record=first, blocks="retrain")
    policy_without = Policy.load()
    policy_without.topics = {}
    with pytest.raises(Refused, match="no budget"):
        client.erase.__class__(vault, Retrainer(release, policy_without)).plan(record=first, blocks="retrain")
    with pytest.raises(Refused, match="release"):
        client.erase.__class__(vault).plan(record=first, blocks="retrain").execute()
    assert client.erase.status() == []


def _other(release: Release) -> Release:
    class Other:
        digest = "0" * 64

    return Other()  # type: ignore[return-value]


def test_a_training_that_is_cut_goes_on_with_its_charge_and_stream(
    client: Client, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fedmem.device.learning as learning
    from fedmem.errors import StorageError

    learn(client, release)
    rest = records(client)[1:]
    planned = client.erase.plan(record=records(client)[:1], blocks="retrain")

    def fail(*_: object, **__: object) -> None:
        raise StorageError("The disk refused.")

    with monkeypatch.context() as patch:
        patch.setattr(learning, "train_block", fail)
        with pytest.raises(PartialErasure, match="trained anew") as caught:
            planned.execute()
    assert caught.value.exit_code == 5
    status = client.erase.status()[0]
    assert (status.state, status.retraining) == ("completed", "pending")
    (outcome,) = client.erase.resume()
    (block,) = client.blocks.list()
    assert outcome.retrained == (block.id,)
    spends = [event.payload for event in client._vault.ledger.events() if event.kind == "spend"]
    assert [len(spend["records"]) for spend in spends] == [3, 2]  # charged once
    assert spends[1]["records"] == rest
    assert client.erase.resume() == []


def test_choices_of_a_run_come_back_as_they_were() -> None:
    from dataclasses import asdict

    public = {"privacy": TINY.to_dict(), "learning": asdict(SETTINGS)}
    assert relearn.choices(public) == (TINY, SETTINGS)
