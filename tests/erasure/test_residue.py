"""The scan for bytes: equal to the obvious slow one, across reads, and never clean by not looking."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmem.erasure import residue
from fedmem.erasure.residue import ResidueHit, scan
from fedmem.errors import StorageError, UsageError

PIECES = st.lists(st.sampled_from([b"a", b"ab", b"abc", b"abcd", b"abcde", b"\x00", b"x"]), max_size=30).map(b"".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(PIECES, st.lists(PIECES.filter(len), max_size=6), st.integers(1, 9))
def test_equals_the_slow_scan_for_every_read_size(tmp_path: Path, data: bytes, needles: list[bytes], read: int) -> None:
    (tmp_path / "file").write_bytes(data)
    named = {f"n{i}": needle for i, needle in enumerate(needles)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(residue, "READ", read)
        assert scan(tmp_path, named) == sorted(
            ResidueHit("file", name) for name, needle in named.items() if needle in data
        )


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

    def refuse(*args: object) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError):
        scan(tmp_path, {"w": b"canary"})
    with pytest.raises(StorageError):
        scan(tmp_path / "absent", {"w": b"canary"})


def test_a_file_that_vanishes_is_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"canary")
    looked_at = os.stat

    def gone(path: object, **options: object) -> os.stat_result:
        facts = looked_at(path, **options)
        Path(tmp_path, "file").unlink(missing_ok=True)
        return facts

    monkeypatch.setattr(os, "stat", gone)
    assert scan(tmp_path, {"w": b"canary"}) == []


def test_scanning_an_open_database_keeps_its_locks(tmp_path: Path) -> None:
    # Closing any descriptor of a file drops a process's POSIX locks on it; another process, sure to be alone, would
    # then remove the log at its end, and with it what is committed here from then on.
    here = sqlite3.connect(tmp_path / "v.db")
    here.executescript("PRAGMA journal_mode=WAL; CREATE TABLE t (a); INSERT INTO t VALUES ('canary')")
    assert [hit.file for hit in scan(tmp_path, {"w": b"canary"})] == ["v.db-wal"]
    other = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM t').fetchall(); c.close()"
    subprocess.run([sys.executable, "-c", other, tmp_path / "v.db"], check=True)
    assert (tmp_path / "v.db-wal").exists()
    here.close()


def test_a_file_open_in_this_process_is_read_from_its_start(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        file.write(b"..canary..")
        file.flush()
        assert scan(tmp_path, {"w": b"canary"}) == [ResidueHit("file", "w")]
        assert file.tell() == 10


def test_windows_find_any_two_neighbours_of_a_row(tmp_path: Path) -> None:
    row = np.linspace(0.1, 0.9, 12, dtype=np.float32).tobytes()
    needles = residue.windows(row, "row")
    assert list(needles.values()) == [row[at : at + 8] for at in range(0, 41, 4)]
    for at in range(0, 41, 4):
        (tmp_path / "file").write_bytes(b"x" * at + row[at : at + 8])
        assert scan(tmp_path, needles) == [ResidueHit("file", f"row {at // 4}")]


def test_windows_that_tell_nothing_are_left_out() -> None:
    assert residue.windows(bytes(64) + b"\x01\x02" * 8, "zeros") == {}
    assert residue.windows(b"1234567", "short") == {}
