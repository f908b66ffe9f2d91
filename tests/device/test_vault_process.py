"""The socket of the vault process: who may talk to it, where it lies, and what hostile peers cost."""

import os
import resource
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedmem.device import vault_process
from fedmem.errors import Refused
from fedmem.federation import connection
from fedmem.federation import socket_protocol as protocol
from fedmem.federation.connection import HEAD, MAGIC, VERSION, BadFrame, Connection, PeerGone
from tests.device.served import HELLO, TOKEN, Running, serving, update


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with serving(tmp_path / "device") as made:
        yield made


def greeted(made: Connection) -> bool:
    """Whether the peer says WELCOME."""
    try:
        return made.receive({protocol.WELCOME: 0}) == (protocol.WELCOME, b"")
    except PeerGone:
        return False


WRONG_TOKENS = {
    "another": bytes(32) + HELLO[32:],
    "one bit": bytes([TOKEN[0] ^ 1]) + HELLO[1:],
    "none": HELLO[32:],
    "half": TOKEN[:16],
    "empty": b"",
}


@pytest.mark.parametrize("hello", WRONG_TOKENS.values(), ids=WRONG_TOKENS.keys())
def test_without_the_token_nothing_is_answered(running: Running, hello: bytes) -> None:
    assert not greeted(running.raw(hello))
    assert greeted(running.raw())


# Runs as another user: connects past the folder, shows the right token, and writes what it is answered.
STRANGER = """
import os, socket, sys
os.setuid(int(sys.argv[3]))
end = socket.socket(socket.AF_UNIX)
end.settimeout(5)
end.connect(sys.argv[1])
try:
    end.sendall(bytes.fromhex(sys.argv[2]))
    sys.stdout.write(end.recv(100).hex() or "closed")
except OSError:
    sys.stdout.write("closed")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may start a process of another user")
@pytest.mark.parametrize(
    ("user", "answer"), [(0, HEAD.pack(MAGIC, VERSION, protocol.WELCOME, 0).hex()), (65534, "closed")]
)
def test_a_process_of_another_user_is_refused_whatever_it_shows(user: int, answer: str) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short, serving(Path(short) / "d") as running:
        os.chmod(short, 0o711)
        os.chmod(running.folder, 0o711)
        os.chmod(running.folder / connection.SOCKET, 0o777)
        hello = HEAD.pack(MAGIC, VERSION, protocol.HELLO, len(HELLO)) + HELLO
        words = [
            sys.executable,
            "-I",
            "-S",
            "-c",
            STRANGER,
            str(running.folder / connection.SOCKET),
            hello.hex(),
            str(user),
        ]
        done = subprocess.run(words, cwd="/", capture_output=True, text=True, timeout=30, check=True)
        assert done.stdout == answer


def test_a_vault_process_of_another_user_is_refused(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    assert running.raw(None).peer_user() == os.geteuid()
    monkeypatch.setattr(Connection, "peer_user", lambda self: os.geteuid() + 1)
    with pytest.raises(Refused):
        running.port()


def test_connections_one_after_another_and_two_at_once_are_served(running: Running) -> None:
    def message(number: int) -> int:
        port = running.port()
        port.shareable()
        port.approve(update(), number)
        port.close()
        return number

    assert [message(number) for number in range(3)] == [0, 1, 2]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(message, range(3, 9)))
    one, other = running.port(), running.port()
    other.approve(update(), 9)
    one.approve(update(), 10)
    assert sorted(entry.number for entry in running.vault.egress) == list(range(11))


JUNK = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 4,
    "a pickle": b"\x80\x04\x95" + bytes(100),
    "noise": os.urandom(4096),
    "10 GB": HEAD.pack(MAGIC, VERSION, protocol.HELLO, 10**10),
    "another version": HEAD.pack(MAGIC, VERSION + 1, protocol.HELLO, 64) + HELLO,
    "half a head": HEAD.pack(MAGIC, VERSION, protocol.HELLO, 64)[:7],
    "half a greeting": HEAD.pack(MAGIC, VERSION, protocol.HELLO, 64) + HELLO[:20],
}


@pytest.mark.parametrize("data", JUNK.values(), ids=JUNK.keys())
def test_junk_costs_its_own_connection_in_time_and_no_memory(running: Running, data: bytes) -> None:
    good, start = running.port(), time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bad = running.raw(None)
    bad._end.setblocking(True)
    bad._end.sendall(data)
    assert not greeted(bad)
    assert time.monotonic() - start < 2.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
    assert good.approve(update(), 1) is not None


def test_who_connects_and_says_nothing_is_closed_in_time(running: Running) -> None:
    start = time.monotonic()
    assert not greeted(running.raw(None))
    assert 0.4 < time.monotonic() - start < 2.5


def test_a_byte_now_and_then_does_not_hold_a_connection_open(running: Running) -> None:
    bad, start = running.raw(None), time.monotonic()
    frame = HEAD.pack(MAGIC, VERSION, protocol.HELLO, 64) + HELLO
    sent = 0
    try:
        for byte in frame:
            bad._end.send(bytes([byte]))
            sent += 1
            time.sleep(0.1)
    except OSError:
        pass
    assert sent < len(frame)
    assert time.monotonic() - start < 3


def test_a_flood_of_silent_peers_does_not_shut_the_device_out(running: Running) -> None:
    good = running.port()
    flood = [running.raw(None) for _ in range(3 * vault_process.MOST_CONNECTIONS)]
    start = time.monotonic()
    late = running.port()
    assert late.approve(update(), 2) is not None
    assert good.approve(update(), 1) is not None
    assert time.monotonic() - start < 5
    assert len(running.server._sessions) <= vault_process.MOST_CONNECTIONS
    assert len(flood) > vault_process.MOST_CONNECTIONS


def test_a_peer_that_does_not_read_is_left_in_time(running: Running) -> None:
    bad = running.raw()
    assert greeted(bad)
    for _ in range(64):  # 64 times 200 kB, of which nothing is read
        bad.send(protocol.RECORDS)
    limit = time.monotonic() + 8
    while running.server._sessions and time.monotonic() < limit:
        time.sleep(0.05)
    assert running.server._sessions == []


def test_a_training_that_takes_too_long_is_left(tmp_path: Path) -> None:
    with serving(tmp_path / "device", training=0.3) as running:
        made = running.raw()
        assert greeted(made)
        assert made.wait(3.0)
        assert made.is_closed()


def test_no_thread_is_left_when_the_server_is_closed(tmp_path: Path) -> None:
    before = threading.active_count()
    with serving(tmp_path / "device") as running:
        running.port()
        running.raw(None)
    limit = time.monotonic() + 3
    while threading.active_count() > before and time.monotonic() < limit:
        time.sleep(0.02)
    assert threading.active_count() == before


def test_a_socket_serves_however_long_its_path_is(tmp_path: Path) -> None:
    folder = tmp_path / ("n" * 100) / ("m" * 100)
    assert len(str(folder / connection.SOCKET)) > 200
    with serving(folder) as running:
        assert running.port().approve(update(), 1) is not None
        assert stat.S_ISSOCK((folder / connection.SOCKET).stat().st_mode)


def test_a_socket_that_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "device").mkdir(mode=0o700)
    connection.listen(tmp_path / "device", 1).close()
    assert (tmp_path / "device" / connection.SOCKET).exists()
    with serving(tmp_path / "device") as running:
        assert greeted(running.raw())


def test_frames_over_a_connection_are_those_of_the_pipe() -> None:
    ours, theirs = (Connection(end, 0.5) for end in socket.socketpair())
    ours.send(1, b"ab", b"c")
    assert theirs.receive({1: 3}) == (1, b"abc")
    ours.send(1, b"abcd")
    with pytest.raises(BadFrame):
        theirs.receive({1: 3})
    theirs._end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    with pytest.raises(PeerGone):
        ours.send(1, bytes(1 << 20))
    with pytest.raises(PeerGone):
        ours.receive({1: 3})
    ours.close()
    assert ours.is_closed()
