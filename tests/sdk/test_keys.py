"""Status of keys and copies, and the erasures after a backup as its receipts show them."""

import shutil
from pathlib import Path

import pytest

from fedmem.errors import NothingMatched, VerificationFailed
from fedmem.sdk.client import Client
from fedmem.sdk.keys import copies_of, later_erasures, status
from fedmem.vault.backup import backup

TEXT = "My doctor prescribed new tablets."


@pytest.fixture
def ana(home: Path) -> Client:
    client = Client.open("ana", keystore="keyfile")
    client.add(TEXT, topic="health")
    client.add("The rent of the flat.", topic="finance")
    return client


@pytest.fixture
def stick(ana: Client, tmp_path: Path) -> Path:
    """A backup of the vault, copied away: an erasure cannot reach it there."""
    backup.create(ana._vault, tmp_path / "backup")
    return Path(shutil.copytree(tmp_path / "backup", tmp_path / "stick"))


def erase(client: Client, topic: str) -> str:
    return client.erase.plan(topic=topic).execute().id


def test_an_erasure_shows_in_the_numbers_and_removes_the_backup_that_it_reaches(ana: Client, stick: Path) -> None:
    with ana:
        before = status(ana._vault)
        assert (before.generation, before.noted) == (0, before.serial)
        assert [(copy.kind, copy.state, copy.reachable) for copy in before.copies] == [("backup", "valid", True)]
        assert copies_of(ana._vault, "backup") == before.copies
        assert copies_of(ana._vault, "kit") == []
        erase(ana, "health")
        after = status(ana._vault)
        assert (after.generation, after.epoch > before.epoch) == (1, True)
        assert after.copies == []


def test_later_erasures_are_those_after_the_backup(ana: Client, tmp_path: Path) -> None:
    with ana as client:
        erase(client, "finance")
        backup.create(client._vault, tmp_path / "backup")
        shutil.copytree(tmp_path / "backup", tmp_path / "stick")
        (record,) = client._vault.records("health")
        erasure = erase(client, "health")
        receipts = client._vault.root / "receipts"
        later = later_erasures(tmp_path / "stick", receipts)
        assert later.generation == 2
        assert record.id in later.erased
        assert [name for name in later.receipts if name.endswith(".dsse.json")] == [f"{erasure}.dsse.json"]
        assert [row["id"] for row in later.journal] == [erasure]


def test_receipts_that_are_missing_changed_or_of_another_vault_are_refused(
    ana: Client, stick: Path, tmp_path: Path
) -> None:
    with ana as client:
        (tmp_path / "empty").mkdir()
        with pytest.raises(NothingMatched, match="receipt"):
            later_erasures(stick, tmp_path / "empty")
        erase(client, "health")
        receipts = Path(shutil.copytree(client._vault.root / "receipts", tmp_path / "receipts"))
    (file,) = receipts.glob("*.dsse.json")
    file.write_bytes(file.read_bytes().replace(b'"payload":"e', b'"payload":"f', 1))
    with pytest.raises(VerificationFailed):
        later_erasures(stick, receipts)
    with Client.open("ben", keystore="keyfile") as other:
        other.add(TEXT, topic="health")
        erase(other, "health")
        with pytest.raises(VerificationFailed):
            later_erasures(stick, other._vault.root / "receipts")
