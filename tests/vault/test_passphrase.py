"""The passphrase keystore: neither the passphrase nor a slot alone opens anything."""

from pathlib import Path

import pytest

from fedmem.errors import KeystoreError
from fedmem.storage.files import Files
from fedmem.vault.crypto.keystore import KeyfileKeys
from fedmem.vault.crypto.passphrase import PassphraseKeys

SALT = bytes(16)


@pytest.mark.parametrize("damage", [b"", b"x" * 20, bytes(32), b"x" * 40, b"x" * 500])
def test_a_damaged_slot_of_a_secret_from_elsewhere_is_missing(tmp_path: Path, damage: bytes) -> None:
    keys = PassphraseKeys.start(KeyfileKeys(Files(), tmp_path), "correct horse", SALT)
    keys.put("device", b"s" * 32)
    assert b"s" * 32 not in (tmp_path / "device").read_bytes()
    (tmp_path / "device").write_bytes(damage)
    with pytest.raises(KeystoreError):
        keys.load("device")


def test_wrong_passphrase_is_told_at_once(tmp_path: Path) -> None:
    slots = KeyfileKeys(Files(), tmp_path)
    PassphraseKeys.start(slots, "correct horse", SALT)
    with pytest.raises(KeystoreError, match="Type it again") as caught:
        PassphraseKeys.resume(slots, "wrong horse", SALT)
    assert caught.value.exit_code == 8
    assert PassphraseKeys.resume(slots, "correct horse", SALT)


def test_passphrase_without_its_slot_opens_nothing(tmp_path: Path) -> None:
    slots = KeyfileKeys(Files(), tmp_path)
    keys = PassphraseKeys.start(slots, "correct horse", SALT)
    secret = keys.create("epoch-1")
    (tmp_path / "epoch-1").write_bytes(b"y" * 32)
    assert PassphraseKeys.resume(slots, "correct horse", SALT).load("epoch-1") != secret


def test_slot_without_the_passphrase_is_not_the_secret(tmp_path: Path) -> None:
    keys = PassphraseKeys.start(KeyfileKeys(Files(), tmp_path), "correct horse", SALT)
    secret = keys.create("epoch-1")
    assert secret not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_empty_passphrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeystoreError):
        PassphraseKeys.start(KeyfileKeys(Files(), tmp_path), "", SALT)
