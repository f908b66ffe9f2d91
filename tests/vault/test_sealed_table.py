"""The format of the key table: what was sealed comes back, and damage is refused."""

import pytest

from fedmem.errors import VerificationFailed
from fedmem.storage.ids import new_id
from fedmem.vault.crypto.sealed_table import decode, encode


def test_payload_codec_refuses_damage() -> None:
    payload = encode({"a": 1}, {new_id(): b"k" * 32})
    for damaged in (payload[:-1], payload + b"x", b"", b"\xff\xff\xff\xff"):
        with pytest.raises(VerificationFailed):
            decode(damaged)
