"""Opening a vault: keystores, passphrases, and programs that write at the same time."""

import threading
import time

import pytest

from fedmem.errors import Busy, KeystoreError
from fedmem.sdk import opening as module
from fedmem.sdk.client import Client
from fedmem.sdk.places import vault_root


def opened(**options: object) -> Client:
    return Client.open("ana", keystore="keyfile", **options)


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
