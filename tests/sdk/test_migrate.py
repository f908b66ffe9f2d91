"""Moving a block to another release: a training of its own, while the old block goes on answering."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fedmem.anchor.presets import new_anchor
from fedmem.anchor.tokenizer import train_tokenizer
from fedmem.device.learning import LearnSettings, learn_topic
from fedmem.device.private_fetch import block_for
from fedmem.device.training_sessions import migrate, training_statuses
from fedmem.errors import BudgetExceeded, NothingMatched, Refused, VersionMismatch
from fedmem.memory.sites import spec_for
from fedmem.policy.policy import Policy
from fedmem.privacy.plan import PrivacyPlan
from fedmem.routing.embedder import StaticEmbedder
from fedmem.routing.tree import Tree
from fedmem.sdk.client import Client
from fedmem.training.bank_state import BankState
from fedmem.training.release import Release
from fedmem.vault.vault import BlockInfo, Vault

NOTE = "My doctor prescribed new tablets for my blood pressure after the visit on Monday."
SETTINGS = LearnSettings(width=4, length=16)
PLAN = PrivacyPlan(sampling_rate=0.5, steps=4, clip=0.1, noise_multiplier=4.0, divisor=4.0, delta=1e-5, record_cap=100)


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Another release: its own anchor, tree and vocabulary."""
    texts = ["A house by the lake.", "A train over the mountains.", "The garden in the spring.", "A letter from home."]
    vectors_ND = StaticEmbedder().embed(texts)
    model = new_anchor("nano", vocab_size=290, seed=9)
    state = BankState.new(spec_for(model, "ffn", 2, (4, 2)), seed=4)
    tree = Tree(2, 2, (vectors_ND[:2], vectors_ND))
    folder = tmp_path_factory.mktemp("newer")
    tokenizer = train_tokenizer(texts, vocab_size=290)
    return Release.write(folder, model, tokenizer, tree, StaticEmbedder().digest, state.stream())


@pytest.fixture
def client(release: Release) -> Iterator[Client]:
    with Client.open("ana", keystore="keyfile", release=release) as client:
        client.add(NOTE, topic="health")
        yield client


def learn(client: Client, release: Release, plan: PrivacyPlan = PLAN) -> BlockInfo:
    return learn_topic(client._vault, release, client._policy.topics["health"], plan, settings=SETTINGS)


def kinds(vault: Vault) -> list[str]:
    return [event.kind for event in vault.ledger.events()]


@pytest.mark.parametrize("named", ["id", "topic"])
def test_it_is_trained_anew_on_the_new_release_and_charged(
    client: Client, release: Release, newer: Release, named: str
) -> None:
    old = learn(client, release)
    before = client.privacy.budget().epsilon
    new = client.blocks.migrate(old.id if named == "id" else "health", newer.root)
    assert (new.release, new.topic, new.width, new.version) == (newer.digest, "health", old.width, 2)
    assert [block.id for block in client.blocks.list()] == [old.id, new.id]  # the old one stays
    spends = [event.payload for event in client._vault.ledger.events() if event.kind == "spend"]
    assert spends[0]["spend"] == spends[1]["spend"]  # its own plan
    assert spends[0]["records"] == spends[1]["records"]
    assert client.privacy.budget().epsilon > before


def test_each_release_answers_with_its_own_block_meanwhile_and_after(
    client: Client, release: Release, newer: Release
) -> None:
    old, root, said = learn(client, release), client._vault.root, []
    client.close()

    def answer(step: int, _: int) -> None:
        with Client.open("ana", path=root, release=release, write=False) as reader:
            said.append(reader.generate(NOTE, max_new_tokens=4))
            assert block_for(reader._vault, "health", release.digest) == old
        if step == 2:
            with (
                Client.open("ana", path=root, release=newer, write=False) as reader,
                pytest.raises(VersionMismatch),
            ):
                reader.generate(NOTE, max_new_tokens=4)

    with Vault.open(root, subject="ana") as vault:
        trained = migrate(vault, "health", newer, Policy.load(), progress=answer)
    assert len(set(said)) == 1
    with Client.open("ana", path=root, release=release, write=False) as reader:
        assert reader.generate(NOTE, max_new_tokens=4) == said[0]
    with Client.open("ana", path=root, release=newer, write=False) as reader:
        assert reader._matching("health")[0].id == trained.block
        reader.generate(NOTE, max_new_tokens=4)


def test_over_budget_nothing_is_charged_and_the_old_block_answers(
    client: Client, release: Release, newer: Release
) -> None:
    old = learn(client, release, PLAN.calibrate(client._policy.topics["health"].epsilon))
    with pytest.raises(BudgetExceeded) as caught:
        client.blocks.migrate("health", newer)
    assert caught.value.exit_code == 4
    assert kinds(client._vault) == ["spend", "run_finished"]
    assert client.blocks.list() == [old]
    assert client.generate(NOTE, max_new_tokens=2) is not None


def test_it_can_be_paused_and_goes_on(client: Client, release: Release, newer: Release) -> None:
    learn(client, release)
    assert migrate(client._vault, "health", newer, client._policy, stop=lambda: True).state == "paused"
    assert [(one.release, one.state, one.step) for one in training_statuses(client._vault)] == [
        (release.digest, "done", 4),
        (newer.digest, "paused", 1),
    ]
    assert client.blocks.migrate("health", newer).release == newer.digest
    assert kinds(client._vault) == ["spend", "run_finished", "spend", "run_finished"]


def test_what_cannot_be_moved_is_refused(client: Client, release: Release, newer: Release, finish_block) -> None:
    with pytest.raises(NothingMatched):
        client.blocks.migrate("health", newer)
    stranger = finish_block(client._vault, "health", "f" * 64)  # sealed by something else than learning
    with pytest.raises(Refused, match="not made by learning"):
        client.blocks.migrate(stranger.id, newer)
    block = learn(client, release)
    with pytest.raises(Refused, match="already"):
        client.blocks.migrate(block.id, release)
    client._policy.topics = {}
    with pytest.raises(Refused, match="no budget"):
        client.blocks.migrate(block.id, newer)
    with pytest.raises(Refused, match="policy"):
        client.blocks.__class__(client._vault).migrate(block.id, newer)
    assert kinds(client._vault).count("spend") == 2


def test_rows_are_those_of_a_vault_that_learned_on_the_new_release_alone(
    client: Client, release: Release, newer: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the noise off: nothing of the old block takes part."""
    silent = PrivacyPlan(**PLAN.to_dict() | {"noise_multiplier": 0.0, "sampling_rate": 1.0})
    generous = {name: topic.__class__(name, float("inf"), topic.delta) for name, topic in client._policy.topics.items()}
    monkeypatch.setattr(client._policy, "topics", generous)
    learn(client, release, silent)
    moved = client.blocks.migrate("health", newer)
    with Client.open("ben", path=tmp_path / "other", keystore="keyfile", release=newer) as other:
        other.add(NOTE, topic="health")
        monkeypatch.setattr(other._policy, "topics", generous)
        alone = learn(other, newer, silent)
        expected = bytes(other._vault.block_rows(alone.id))
    assert client._vault.block_rows(moved.id) == expected
    assert torch.tensor(list(expected[-64:])).any()
