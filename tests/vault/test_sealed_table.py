"""The format of the key table: what was sealed comes back, and damage is refused."""

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedmem.errors import UsageError, VerificationFailed
from fedmem.storage.ids import new_id
from fedmem.vault.crypto import container, hpke
from fedmem.vault.crypto.sealed_table import decode, encode, numbers_of, seal, unseal


def test_payload_codec_refuses_damage() -> None:
    payload = encode({"a": 1}, {new_id(): b"k" * 32})
    for damaged in (payload[:-1], payload + b"x", b"", b"\xff\xff\xff\xff"):
        with pytest.raises(VerificationFailed):
            decode(damaged)


KEY, VAULT = b"k" * 32, "0" * 32
ROWS = {"ab" * 16: b"s" * 32, "cd" * 16: b"g" * 32}


def test_what_was_sealed_comes_back_for_its_key_and_vault_alone() -> None:
    table = seal(KEY, VAULT, (3, 1, 9), {"subject": "alice"}, ROWS)
    assert unseal(KEY, VAULT, table) == ((3, 1, 9), {"subject": "alice"}, ROWS)
    for key, vault in ((b"o" * 32, VAULT), (KEY, "1" * 32)):
        with pytest.raises(VerificationFailed):
            unseal(key, vault, table)
    assert b"alice" not in table


def test_the_header_shows_numbers_and_kits_and_each_kit_opens_it() -> None:
    kit = X25519PrivateKey.generate()
    table = seal(KEY, VAULT, (3, 1, 9), {"kits": {"k1": hpke.public_of(kit)}}, ROWS)
    header, _ = container.read_header(table)
    assert header.keys() == {"kind", "vault", "epoch", "generation", "serial", "kits"}
    assert numbers_of(header) == (3, 1, 9)
    assert hpke.open_with(kit, header["kits"]["k1"], identity=f"{VAULT}/k1") == KEY


@pytest.mark.parametrize("change", [{"kind": "block"}, {"epoch": -1}, {"serial": True}, {"generation": "1"}])
def test_a_header_with_other_numbers_is_damage(change: dict[str, object]) -> None:
    header = {"kind": "keytable", "epoch": 1, "generation": 0, "serial": 1}
    with pytest.raises(container.ContainerCorrupt):
        numbers_of({**header, **change})


def test_too_many_kits_do_not_fit() -> None:
    public = hpke.public_of(X25519PrivateKey.generate())
    with pytest.raises(UsageError):
        seal(KEY, VAULT, (1, 0, 1), {"kits": {f"{n:032x}": public for n in range(40)}}, {})
