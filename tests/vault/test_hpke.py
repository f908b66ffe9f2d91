"""Secrets that are sealed to a recovery kit's public key: they open for that kit and identity alone."""

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedmem.errors import VerificationFailed
from fedmem.vault.crypto.hpke import open_with, public_of, seal_to

KEY = X25519PrivateKey.generate()
IDENTITY = "vault/kit"


def test_a_secret_comes_back_and_is_sealed_anew_each_time() -> None:
    first, second = (seal_to(public_of(KEY), b"s" * 32, identity=IDENTITY) for _ in range(2))
    assert first != second
    assert open_with(KEY, first, identity=IDENTITY) == open_with(KEY, second, identity=IDENTITY) == b"s" * 32


def test_another_key_and_another_identity_open_nothing() -> None:
    sealed = seal_to(public_of(KEY), b"s" * 32, identity=IDENTITY)
    for key, identity in ((X25519PrivateKey.generate(), IDENTITY), (KEY, "vault/another"), (KEY, "")):
        with pytest.raises(VerificationFailed, match="recovery kit"):
            open_with(key, sealed, identity=identity)


def test_every_changed_byte_is_noticed() -> None:
    sealed = bytes.fromhex(seal_to(public_of(KEY), b"s" * 32, identity=IDENTITY))
    for at in range(len(sealed)):
        changed = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        with pytest.raises(VerificationFailed):
            open_with(KEY, changed.hex(), identity=IDENTITY)


@pytest.mark.parametrize("text", ["", "00", "no hex", "0" * 63, 7])
def test_what_is_no_sealed_secret(text: str) -> None:
    with pytest.raises(VerificationFailed):
        open_with(KEY, text, identity=IDENTITY)


def test_a_public_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        seal_to("00" * 31, b"s", identity=IDENTITY)
