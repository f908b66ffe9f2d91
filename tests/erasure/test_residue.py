"""The scan for bytes: equal to the obvious slow one, across reads, and never clean by not looking."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmem.erasure import residue
from fedmem.erasure.residue import Hit, scan
from fedmem.errors import StorageError, UsageError

PIECES = st.lists(st.sampled_from([b"a", b"ab", b"abc", b"abcd", b"abcde", b"\x00", b"x"]), max_size=30).map(b"".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(PIECES, st.lists(PIECES.filter(len), max_size=6), st.integers(1, 9))
def test_equals_the_slow_scan_for_every_read_size(tmp_path: Path, data: bytes, needles: list[bytes], read: int) -> None:
    (tmp_path / "file").write_bytes(data)
    named = {f"n{i}": needle for i, needle in enumerate(needles)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(residue, "READ", read)
        assert scan(tmp_path, named) == sorted(Hit("file", name) for name, needle in named.items() if needle in data)


def test_hidden_nested_and_temporary_files_are_read(tmp_path: Path) -> None:
    for name in (".hidden", "a/b/c.tmp", "v.db-wal"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"..canary..")
    assert [hit.file for hit in scan(tmp_path, {"w": b"canary"})] == [".hidden", "a/b/c.tmp", "v.db-wal"]


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"canary")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    assert scan(tmp_path / "root", {"w": b"canary"}) == []


def test_nothing_to_look_for_or_in(tmp_path: Path) -> None:
    assert scan(tmp_path, {}) == []
    (tmp_path / "empty").write_bytes(b"")
    assert scan(tmp_path, {"w": b"canary"}) == []
    with pytest.raises(UsageError):
        scan(tmp_path, {"w": b""})


def test_what_cannot_be_read_is_not_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"x")

    def refuse(self: Path, *args: object, **options: object) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageError):
        scan(tmp_path, {"w": b"canary"})
    with pytest.raises(StorageError):
        scan(tmp_path / "absent", {"w": b"canary"})
