"""The device key: its public key stays named after it changed, and a cut change is completed."""

from pathlib import Path

import pytest

from fedmem.errors import VerificationFailed
from fedmem.vault.crypto import device_key
from fedmem.vault.crypto.device_key import change, earlier_keys, fingerprint, public_pem

OLD, NEW = public_pem(b"1" * 32), public_pem(b"2" * 32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "receipts").mkdir()
    (tmp_path / device_key.NAME).write_bytes(OLD)
    return tmp_path


def test_the_earlier_key_is_kept_under_its_fingerprint(root: Path, faults) -> None:
    change(faults, root, NEW)
    assert (root / device_key.NAME).read_bytes() == NEW
    assert (root / "receipts" / f"{fingerprint(OLD)}.pub").read_bytes() == OLD
    change(faults, root, NEW)
    assert len(list((root / "receipts").iterdir())) == 1


@pytest.mark.parametrize("at", range(10))
def test_a_change_that_was_cut_loses_no_key_and_is_completed(root: Path, faults, at: int) -> None:
    faults.arm("cut", at)
    try:
        change(faults, root, NEW)
    except faults.PowerCut:
        faults.arm("cut", None)
        change(faults, root, NEW)
    assert (root / device_key.NAME).read_bytes() == NEW
    assert (root / "receipts" / f"{fingerprint(OLD)}.pub").read_bytes() == OLD


def test_fingerprints_are_of_the_key_and_not_of_its_file() -> None:
    assert fingerprint(OLD) == fingerprint(b"a comment\n" + OLD + b"\n") != fingerprint(NEW)
    for damaged in (b"", b"no key", OLD[:-40]):
        with pytest.raises(VerificationFailed, match="public key is damaged"):
            fingerprint(damaged)


def test_a_vault_whose_key_never_changed_has_no_earlier_keys() -> None:
    assert earlier_keys({}) == []
    assert earlier_keys({device_key.EARLIER: ["a", "b"]}) == ["a", "b"]
