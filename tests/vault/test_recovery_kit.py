"""The file of a recovery kit and its code: what opens, and what is refused."""

import base64
import json

import pytest

from fedmem.errors import (
    KeystoreError,
    VerificationFailed,
    VersionMismatch,
)
from fedmem.vault.backup import recovery, recovery_kit
from fedmem.vault.crypto import container
from tests.vault.test_recovery import kitted

__all__ = ["kitted"]  # fixtures


class TestCode:
    def test_it_survives_how_people_type(self) -> None:
        code = bytes(range(32))
        text = recovery_kit.spell(code)
        assert len(text.split("-")) == 14
        for typed in (text, text.lower(), text.replace("-", " ") + "\n", text.replace("O", "0").replace("I", "1")):
            assert recovery_kit.read_code(typed) == code

    def test_every_wrong_letter_is_noticed(self) -> None:
        text = recovery_kit.spell(bytes(range(32)))
        for at, letter in enumerate(text):
            if letter != "-":
                wrong = text[:at] + ("A" if letter != "A" else "C") + text[at + 1 :]
                with pytest.raises(KeystoreError, match="mistyped"):
                    recovery_kit.read_code(wrong)

    @pytest.mark.parametrize("text", ["", "AAAA", "é" * 56, "A" * 56, "A" * 64, "A" * 10_000])
    def test_what_is_no_code(self, text: str) -> None:
        with pytest.raises(KeystoreError):
            recovery_kit.read_code(text)


def test_a_kit_holds_no_key_that_signs(kitted) -> None:
    vault, kit, code = kitted
    fields = json.loads(kit.read_bytes())
    sealing_key = recovery_kit._sealing_key(recovery_kit.read_code(code), fields)
    identity = f"recovery/{vault.id}/{fields['id']}/{fields['created']}"
    plain = container.open_cell(sealing_key, base64.b64decode(fields["sealed"]), identity=identity)
    assert json.loads(plain).keys() == {"key"}
    assert vault.core.keystore.load("device").hex().encode() not in plain


def test_a_kit_of_an_earlier_fedmem_still_opens(kitted, monkeypatch: pytest.MonkeyPatch) -> None:
    vault, _, code = kitted
    known = vault.core.table.facts["kits"]
    monkeypatch.setattr(recovery_kit, "SCHEMA", "fedmem.recovery-kit/1")
    kit_id, key = next(iter(known)), recovery_kit.X25519PrivateKey.generate()
    file = recovery_kit.encode(vault.id, kit_id, recovery_kit.read_code(code), key)
    assert json.loads(file)["schema"] == "fedmem.recovery-kit/1"
    assert recovery_kit.open_kit(file, code).id == kit_id


def test_every_damaged_byte_of_a_kit_is_noticed(kitted) -> None:
    vault, kit, code = kitted
    whole = kit.read_bytes()
    for at in range(0, len(whole), 7):
        damaged = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        with pytest.raises(VerificationFailed):
            recovery.check(vault.root, damaged, code)
    for broken in (b"", b"{}", b"[]", b"null", whole[:-30], b"[" * 100_000):
        with pytest.raises(VerificationFailed):
            recovery.check(vault.root, broken, code)


def test_a_kit_of_a_later_format(kitted) -> None:
    vault, kit, code = kitted
    known = json.loads(kit.read_bytes())
    known["schema"] = "fedmem.recovery-kit/3"
    del known["checksum"]
    known["checksum"] = recovery_kit.digest(known)
    with pytest.raises(VersionMismatch):
        recovery.check(vault.root, json.dumps(known).encode(), code)
