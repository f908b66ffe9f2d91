"""The client: one subject, one vault; placement, search, keystores and what it refuses."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import fedmem
from fedmem.errors import Busy, KeystoreError, NothingMatched, Refused, UsageError
from fedmem.sdk import client as module
from fedmem.sdk.client import Client
from fedmem.sdk.places import vault_root
from fedmem.training.release import Release
from fedmem.vault.vault import BlockInfo, Vault

HEALTH = "My doctor prescribed new tablets for my blood pressure after the visit on Monday."
PUBLIC = "The museum of the town opens at ten and shows old maps."


def opened(**options: object) -> Client:
    return Client.open("ana", keystore="keyfile", **options)


def test_client_is_what_the_package_names() -> None:
    assert fedmem.Client is Client


def test_add_then_search_then_open_again() -> None:
    with opened() as client:
        added = client.add(HEALTH, topic="health")
        client.add(PUBLIC)
        assert (added.decision.placement, added.decision.topic) == ("private", "health")
    with opened() as client:
        best = client.search("which pills did the doctor give me", k=1)[0]
        assert (best.id, best.text, best.topic) == (added.id, HEALTH, "health")


def test_a_shareable_record_has_no_topic() -> None:
    with opened() as client:
        assert client.add(PUBLIC).decision.topic is None
        assert client.search(PUBLIC, k=1)[0].topic is None


def test_another_subject_sees_nothing() -> None:
    with opened() as client:
        client.add(HEALTH, topic="health")
    with Client.open("ben", keystore="keyfile") as client:
        assert client.search(HEALTH) == []
    with pytest.raises(Refused):
        Client.open("ben", path=vault_root("ana"), keystore="keyfile")


def test_nothing_private_lies_in_the_clear(home: Path) -> None:
    with opened() as client:
        client.add("The zebrafinch password", topic="health")
    files = [path for path in home.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"zebrafinch" in path.read_bytes() or b"zebrafinch" in path.name.encode()]


@pytest.mark.parametrize("text", ["", "  \n"])
def test_empty_texts_are_refused(text: str) -> None:
    with opened() as client, pytest.raises(UsageError):
        client.add(text)


def test_unknown_topic_and_bad_k() -> None:
    with opened() as client:
        with pytest.raises(UsageError):
            client.add(PUBLIC, topic="no-such-topic")
        with pytest.raises(NothingMatched):
            client.learn("no-such-topic")
        with pytest.raises(UsageError):
            client.search(PUBLIC, k=0)
        assert client.search(PUBLIC) == []


def test_simulated_vaults_are_refused_and_let_go(tmp_path: Path) -> None:
    Vault.create(tmp_path / "v", subject="ana", simulated=True).close()
    for _ in range(2):  # the second time too: the lock was let go
        with pytest.raises(Refused):
            Client.open("ana", path=tmp_path / "v", keystore="keyfile")


def test_auto_keystore_refuses_where_there_is_no_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_keyring", lambda: False)
    with pytest.raises(KeystoreError, match=r"passphrase.*keyfile"):
        Client.open("ana")
    assert not vault_root("ana").exists()


def test_auto_keystore_is_the_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_keyring", lambda: True)
    assert module.chosen_keystore("auto") == "keyring"
    assert module.chosen_keystore("passphrase") == "passphrase"


def test_passphrase_right_wrong_and_missing() -> None:
    Client.open("ana", keystore="passphrase", ask=lambda: "tulip").close()
    Client.open("ana", ask=lambda: "tulip").close()
    with pytest.raises(KeystoreError):
        Client.open("ana", ask=lambda: "rose")
    with pytest.raises(KeystoreError):
        Client.open("ana")


def test_two_clients_write_in_turn() -> None:
    with opened() as first, opened(timeout=0.1) as second:
        ids = {first.add("The plum tree wants pruning.").id, second.add("Beans go in after the frost.").id}
        for client in (first, second):
            assert {hit.id for hit in client.search("garden", k=9)} == ids
        with first._vault.core.turn(), pytest.raises(Busy):
            second.add("Not now.")
        assert len(second.search("garden", k=9)) == 2


def test_a_writer_waits_for_another_one() -> None:
    has_lock = threading.Event()

    def change(client: Client) -> None:
        with client._vault.core.turn():
            has_lock.set()
            time.sleep(0.3)

    with opened() as first, opened(timeout=20) as second:
        slow = threading.Thread(target=change, args=(first,))
        slow.start()
        has_lock.wait()
        second.add("The hull leaks aft.")
        slow.join()
        assert len(first.search("boat", k=3)) == 1


def test_answers_need_a_release() -> None:
    with opened() as client:
        with pytest.raises(Refused):
            client.generate("Hello")
        with pytest.raises(Refused):
            client.learn("health")


def test_records_carry_the_release_and_its_path(release: Release) -> None:
    with opened(release=release.root) as client:
        client.add(PUBLIC)
        record = client._vault.records(None)[0]
        assert record.release == release.digest
        assert len(record.path) == 2


def test_blocks_and_budget(finish_block: Callable[..., BlockInfo]) -> None:
    with opened() as client:
        assert client.blocks.list() == []
        assert client.privacy.budget().epsilon == 0
        client.add(HEALTH, topic="health")
        block = finish_block(client._vault, "health", "r1")
        assert client.blocks.list() == [block]
        assert client.blocks.get("health") == block
        budget = client.privacy.budget()
        assert (budget.delta, budget.accountant) == (1e-5, "pld")
        assert 0 < budget.epsilon == budget.runs[0].epsilon < 8
        assert budget.runs[0].topic == "health"


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


def test_no_unscoped_read_and_no_delete_all() -> None:
    names = {name for name in dir(Client) if not name.startswith("_")}
    views = {"blocks", "erase", "privacy", "egress"}
    verbs = {"open", "add", "search", "learn", "train", "trainings", "cancel", "generate", "close"}
    assert names == views | verbs


def test_adding_and_searching_load_no_torch(home: Path) -> None:
    code = (
        "import sys; from fedmem import Client\n"
        "with Client.open('ana', keystore='keyfile') as c: c.add('a note on maps'); c.search('maps'); c.blocks.list()\n"
        "assert not {'torch', 'transformers', 'opacus', 'faiss'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_learning_uses_the_topic_of_the_policy(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    import fedmem.device.learning as learning

    calls: list[SimpleNamespace] = []
    monkeypatch.setattr(
        learning, "learn_topic", lambda vault, got, topic, plan: calls.append(SimpleNamespace(topic=topic, plan=plan))
    )
    with opened(release=release) as client:
        client.learn("health")
    assert calls[0].topic.name == "health"
    assert calls[0].plan.epsilon() <= calls[0].topic.epsilon


@pytest.mark.parametrize(
    "text", [None, b"bytes", "half \ud83d of a pair", "a" * (2**20 + 1)], ids=["None", "b", "half", "long"]
)
def test_what_is_no_text_is_refused_and_nothing_is_added(text: object) -> None:
    with Client.open("ana", keystore="keyfile") as client:
        client.add("The river runs to the sea.")
        for call in (client.add, client.search, client.generate):
            with pytest.raises(UsageError, match="text"):
                call(text)  # type: ignore[operator]
        assert len(client.search("river", k=9)) == 1
