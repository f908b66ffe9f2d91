"""The hash-chained log: what it holds comes back, and every change but a torn end is noticed."""

import json
import os
from pathlib import Path

import pytest

from fedmem.errors import StorageError, VerificationFailed
from fedmem.storage.files import Files
from fedmem.storage.hash_chained_log import HEX, JSON, HashChainedLog, LineFormat, chain

CONTENTS = {HEX.field: [b"", b"\x00\xff", b"three"], JSON.field: [b'{"a":1}', b"[]", b'{"a":"\xc3\xa9"}']}


@pytest.fixture(params=[HEX, JSON], ids=["hex", "json"])
def line_format(request: pytest.FixtureRequest) -> LineFormat:
    return request.param


def filled(path: Path, line_format: LineFormat) -> HashChainedLog:
    log = HashChainedLog(Files(), path, line_format)
    for content in CONTENTS[line_format.field]:
        log.append(content)
    return log


def test_entries_come_back_in_another_object(tmp_path: Path, line_format: LineFormat) -> None:
    log = filled(tmp_path / "log", line_format)
    again = HashChainedLog(Files(), tmp_path / "log", line_format)
    assert [entry.content for entry in again.read()] == CONTENTS[line_format.field]
    assert (again.head, again.count) == (log.head, log.count) == (again.read()[-1].digest, 3)


def test_digests_are_those_of_the_chain(tmp_path: Path) -> None:
    previous = ""
    for entry in filled(tmp_path / "log", HEX).read():
        assert entry.digest == chain(previous, entry.number, entry.content)
        previous = entry.digest


def test_a_missing_file_is_an_empty_log(tmp_path: Path, line_format: LineFormat) -> None:
    log = HashChainedLog(Files(), tmp_path / "log", line_format)
    assert (log.read(), log.head, log.count, log.is_current) == ([], "", 0, True)


@pytest.mark.parametrize("length", range(1, 60, 7))
def test_a_torn_end_is_overwritten(tmp_path: Path, line_format: LineFormat, length: int) -> None:
    filled(tmp_path / "log", line_format)
    whole = (tmp_path / "log").read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    (tmp_path / "log").write_bytes(whole[: last + length])
    log = HashChainedLog(Files(), tmp_path / "log", line_format)
    assert [entry.content for entry in log.read()] == CONTENTS[line_format.field][:2]
    log.append(CONTENTS[line_format.field][2])
    assert (tmp_path / "log").read_bytes() == whole


def test_every_changed_byte_is_noticed(tmp_path: Path, line_format: LineFormat) -> None:
    filled(tmp_path / "log", line_format)
    whole = (tmp_path / "log").read_bytes()
    for at in range(len(whole) - 1):  # a changed last line end is a torn end
        (tmp_path / "log").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(VerificationFailed, match="log does not verify at entry"):
            HashChainedLog(Files(), tmp_path / "log", line_format).read()


@pytest.mark.parametrize("order", [(1, 2), (0, 2), (1, 0, 2), (0, 0, 1, 2), (2,)])
def test_lines_dropped_moved_or_repeated_are_noticed(tmp_path: Path, order: tuple[int, ...]) -> None:
    filled(tmp_path / "log", HEX)
    lines = (tmp_path / "log").read_bytes().splitlines(keepends=True)
    (tmp_path / "log").write_bytes(b"".join(lines[number] for number in order))
    with pytest.raises(VerificationFailed):
        HashChainedLog(Files(), tmp_path / "log", HEX).read()


@pytest.mark.parametrize(
    "line", [b"\n", b"{}\n", b"[]\n", b"nothing\n", b'{"sealed":"zz","digest":""}\n', b"[" * 9999 + b"\n"]
)
def test_other_lines_are_no_entries(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "log").write_bytes(line)
    with pytest.raises(VerificationFailed):
        HashChainedLog(Files(), tmp_path / "log", HEX).read()


def test_two_objects_append_in_turns(tmp_path: Path, line_format: LineFormat) -> None:
    first, second = (HashChainedLog(Files(), tmp_path / "log", line_format) for _ in range(2))
    one, two, three = CONTENTS[line_format.field]
    first.append(one)
    second.append(two)
    assert not first.is_current
    first.append(three)
    assert [entry.content for entry in second.read()] == [one, two, three]


def test_after_a_full_disk_nothing_was_added_and_the_next_append_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = filled(tmp_path / "log", HEX)
    with monkeypatch.context() as patch:
        real = os.pwrite
        patch.setattr(os, "pwrite", lambda handle, data, at: real(handle, data[:5], at))
        with pytest.raises(StorageError, match="full"):
            log.append(b"lost")
    assert log.count == 3
    log.append(b"four")
    assert [entry.content for entry in HashChainedLog(Files(), tmp_path / "log", HEX).read()][3:] == [b"four"]


def test_an_entry_that_may_wait_costs_no_sync(tmp_path: Path) -> None:
    seen: list[str] = []
    log = filled(tmp_path / "log", HEX)
    log._files = Files(lambda operation, path: seen.append(operation))
    log.append(b"waits", durable=False)
    assert seen == ["write"]
    log.append(b"durable")
    assert seen == ["write", "write", "fsync"]


def test_an_egress_log_of_an_earlier_version_reads(tmp_path: Path) -> None:
    """The line format of vaults that exist: the digest, then the sealed line in hex."""
    digest = chain("", 0, b"sealed")
    (tmp_path / "log").write_text(
        json.dumps({"digest": digest, "sealed": b"sealed".hex()}, separators=(",", ":")) + "\n"
    )
    (entry,) = HashChainedLog(Files(), tmp_path / "log", HEX).read()
    assert (entry.content, entry.digest) == (b"sealed", digest)
