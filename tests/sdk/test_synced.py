"""Folders that a synchronising program copies, by name, marker file and link."""

from pathlib import Path

import pytest

from fedmem.sdk import synced


def test_synced_folders(tmp_path: Path) -> None:
    assert not synced.is_synced(tmp_path)
    assert synced.is_synced(Path("/home/a/OneDrive - Work/vaults"))
    assert synced.is_synced(Path("/Users/a/Library/Mobile Documents/com~apple~CloudDocs/vaults"))
    assert synced.is_synced(Path("/home/a/My Drive/vaults"))
    assert not synced.is_synced(Path("/home/a/mailbox/vaults"))
    (tmp_path / ".stfolder").mkdir()
    assert synced.is_synced(tmp_path / "deep" / "vaults")


@pytest.mark.parametrize(
    "folder",
    [
        "/Users/a/Library/CloudStorage/OneDrive-Work/v", "/Users/a/Library/CloudStorage/GoogleDrive-a@example.org/v",
        "/home/a/Dropbox (Personal)/v", "/home/a/GoogleDrive-a@example.org/v", "/home/a/OneDrive-Personal/v",
        "/home/a/Nextcloud/v", "/home/a/SeaDrive/v",
    ],
)  # fmt: skip
def test_folders_of_the_published_list_are_found(folder: str) -> None:
    assert synced.is_synced(Path(folder))


def test_the_published_list_is_the_one_that_is_used() -> None:
    text = (Path(__file__).parents[2] / "docs" / "erasure.md").read_text("utf-8").lower()
    names = [*synced.SYNC_NAMES, *synced.MARKERS, *synced.MARKER_STARTS]
    assert [name for name in names if f"`{name}" not in text] == []


@pytest.mark.parametrize("mark", [".stfolder", "._sync_5f0c.db", ".tmp.drivedownload"])
def test_a_link_into_a_synced_folder_is_found(tmp_path: Path, mark: str) -> None:
    (tmp_path / "shared" / "inner").mkdir(parents=True)
    (tmp_path / "shared" / mark).touch()
    (tmp_path / "link").symlink_to(tmp_path / "shared" / "inner")
    assert synced.is_synced(tmp_path / "link" / "vaults")
    assert not synced.is_synced(tmp_path)
