"""The public facts of a vault: a changed one does not open."""

import pytest

from fedmem.errors import (
    VerificationFailed,
    VersionMismatch,
)


def test_simulated_mark_cannot_be_removed(vaults) -> None:
    vault = vaults.create(simulated=True)
    vault.close()
    path = vault.root / "vault.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"simulated":true', b'"simulated":false'))
    with pytest.raises(VerificationFailed):
        vaults.open()
    path.write_bytes(whole)
    assert vaults.open().simulated


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        (b'"format":1', b'"format":2', VersionMismatch),
        (b'"keystore":"keyfile"', b'"keystore":"none"', VerificationFailed),
        (b'"kdf":null', b'"kdf":{}', VerificationFailed),
        (b"{", b"[", VerificationFailed),
    ],
)
def test_changed_public_facts(vaults, old: bytes, new: bytes, error: type[Exception]) -> None:
    vault = vaults.create()
    vault.close()
    path = vault.root / "vault.json"
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(error):
        vaults.open()


def test_gigantic_kdf_parameters_are_not_obeyed(vaults) -> None:
    vault = vaults.create(keystore="passphrase", ask=lambda: "correct horse")
    vault.close()
    path = vault.root / "vault.json"
    path.write_bytes(path.read_bytes().replace(b'"memory_cost":65536', b'"memory_cost":99999999'))
    with pytest.raises(VerificationFailed):
        vaults.open(ask=lambda: pytest.fail("asked for a passphrase"))
