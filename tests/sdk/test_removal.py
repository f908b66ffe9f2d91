"""A removal: refused while something would be lost, and completed after a crash."""

from pathlib import Path

import numpy as np
import pytest

from fedmem import paths
from fedmem.errors import Refused, StorageError
from fedmem.sdk import removal
from fedmem.sdk.client import Client
from fedmem.sdk.places import vault_root
from fedmem.storage.files import Files
from fedmem.vault.vault import NewRecord, Vault


@pytest.fixture
def ana(home: Path) -> Client:
    """Ana's client with one record."""
    client = Client.open("ana", keystore="keyfile")
    client.add("My doctor prescribed new tablets.", topic="health")
    return client


@pytest.fixture
def erased(ana: Client) -> str:
    """The id of an erasure of everything of ana; its opening is delivered."""
    with ana as client:
        done = client.erase.plan(subject=True).execute()
        client.erase.confirm_delivery(done.id)
    return done.id


def test_the_evidence_is_copied_out_before_folder_and_keys_go(erased: str, tmp_path: Path) -> None:
    done = removal.remove(vault_root("ana"), tmp_path / "evidence", subject="ana")
    assert done.evidence == tuple(sorted(["device.pub", f"{erased}.dsse.json", f"{erased}.list"]))
    assert {path.name for path in (tmp_path / "evidence").iterdir()} == {*done.evidence}
    assert not vault_root("ana").exists()
    assert list(paths.slots_dir().iterdir()) == []


def test_a_vault_with_a_record_is_refused_and_stays(ana: Client, tmp_path: Path) -> None:
    ana.close()
    with pytest.raises(Refused, match="holds content"):
        removal.remove(vault_root("ana"), tmp_path / "evidence", subject="ana")
    with Client.open("ana", write=False) as client:
        assert len(client.search("tablets")) == 1
    assert not (tmp_path / "evidence").exists()


def test_an_undelivered_opening_is_delivered_first(ana: Client, tmp_path: Path) -> None:
    with ana as client:
        done = client.erase.plan(subject=True).execute()
    with pytest.raises(Refused, match=f"receipt opening {done.id}"):
        removal.remove(vault_root("ana"), tmp_path / "evidence", subject="ana")


def test_an_interrupted_removal_is_completed(erased: str, tmp_path: Path) -> None:
    """Fail at every operation after the mark; the same call then completes, and never without the mark."""
    root, at = vault_root("ana"), 0

    def run(limit: int | None, place: Path) -> None:
        seen = 0

        def hook(operation: str, path: Path) -> None:
            nonlocal seen
            seen += operation != "read"
            if limit is not None and seen > limit:
                raise OSError(5, "the disk failed")

        removal.remove(root, place, subject="ana", files=Files(hook))

    while root.exists():
        try:
            run(at, tmp_path / f"evidence-{at}")
        except StorageError:
            at += 3
            assert at < 300
    assert not (paths.slots_dir() / root.name).exists()
    assert list(paths.slots_dir().iterdir()) == []


def test_a_wrong_passphrase_completes_no_removal(home: Path, tmp_path: Path) -> None:
    root = tmp_path / "v"
    with Vault.create(root, subject="ana", keystore="passphrase", ask=lambda: "tulip") as vault:
        vault.add_records([NewRecord("new", "health", (), np.ones(2, np.float32), "r")])
    (root / removal.MARK).touch()
    with pytest.raises(Exception, match="passphrase"):
        removal.remove(root, tmp_path / "evidence", subject="ana", ask=lambda: "rose")
    with Vault.open(root, subject="ana", ask=lambda: "tulip") as vault:
        assert len(vault.records("health")) == 1
