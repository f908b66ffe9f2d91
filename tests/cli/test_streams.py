"""Standard streams that are closed, full or cut, or whose encoding lacks a character."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedmem.cli import streams


def test_a_character_that_the_encoding_lacks_is_escaped(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as stream:
        streams.write(stream, "ε = 1\n")
    assert (tmp_path / "out").read_text() == "\\u03b5 = 1\n"


def test_text_that_was_printed_before_comes_before(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as stream:
        stream.write("first ")
        streams.write(stream, "second")
    assert (tmp_path / "out").read_text() == "first second"


def test_a_stream_without_a_descriptor_is_written_too() -> None:
    stream = io.StringIO()
    streams.write(stream, "text")
    assert stream.getvalue() == "text"


@pytest.mark.parametrize("is_missing", [True, False])
def test_a_closed_or_missing_stream_is_an_error_for_write_and_none_for_flush(is_missing: bool, tmp_path: Path) -> None:
    stream = (tmp_path / "out").open("w")
    stream.close()
    closed = None if is_missing else stream
    with pytest.raises(OSError) as caught:  # noqa: PT011  (its number is compared)
        streams.write(closed, "text")
    assert caught.value.errno == errno.EBADF
    assert streams.flush(closed) is None
    assert not streams.is_terminal(closed)


@pytest.mark.parametrize("kind", ["full", "cut"])
def test_after_a_failed_write_the_rest_goes_to_the_null_device(kind: str) -> None:
    if kind == "full":
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, descriptor = os.pipe()
        os.close(reading)
    with os.fdopen(descriptor, "w") as stream:
        with pytest.raises(OSError) as caught:  # noqa: PT011  (its number is compared)
            streams.write(stream, "text")
        assert caught.value.errno == (errno.ENOSPC if kind == "full" else errno.EPIPE)
        streams.write(stream, "more")
        assert streams.flush(stream) is None
        assert os.fstat(descriptor).st_rdev == os.stat(os.devnull).st_rdev


def test_flush_returns_the_error_once() -> None:
    with os.fdopen(os.open("/dev/full", os.O_WRONLY), "w") as stream:
        stream.write("text")
        error = streams.flush(stream)
        assert error is not None
        assert error.errno == errno.ENOSPC
        assert streams.flush(stream) is None


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_file_never_gets_the_number_of_a_closed_stream(closed: str, tmp_path: Path) -> None:
    code = (
        "import os; from fedmem.cli.streams import prepare; prepare()\n"
        f"number = os.open({str(tmp_path / 'vault')!r}, os.O_CREAT | os.O_WRONLY); os.write(number, b'%d' % number)"
    )
    subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", code], check=True)
    assert int((tmp_path / "vault").read_text()) > 2
