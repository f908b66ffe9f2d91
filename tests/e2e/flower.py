"""Helpers of the tests that run Flower's own programs: an environment that notes outbound calls, and a SuperLink."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from fedmem.federation.offline import SWITCHES

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

# Loaded by every Python process that a test starts: it notes each attempt to reach another machine, and at its end the
# modules of fedmem that it has loaded.
WATCH = """
import atexit, os, socket, sys

# Beside the folder of this file, since programs start others with an environment of their own.
CALLS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "calls")

def note(what):
    with open(CALLS, "a") as file:
        file.write(f"{what}\\n")

def outside(host):
    return host and not str(host).startswith(("127.", "0.0.0.0", "::1", "localhost", OWN, socket.gethostname()))

def address():
    # Where packets would leave from; a datagram socket that connects sends none. Ray asks in the same way.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            connect(probe, ("192.0.2.1", 9))
            return probe.getsockname()[0]
        except OSError:
            return "127."

class Socket(socket.socket):
    def connect(self, to):
        if self.family != socket.AF_UNIX and self.type == socket.SOCK_STREAM and outside(to[0]):
            note(f"connect {to}")
        return super().connect(to)

def getaddrinfo(host, *args, **kwargs):
    if outside(host):
        note(f"look up {host}")
    return look_up(host, *args, **kwargs)

connect, look_up = socket.socket.connect, socket.getaddrinfo
OWN = address()
socket.socket, socket.getaddrinfo = Socket, getaddrinfo

def modules():
    program = os.path.basename((sys.orig_argv + ["", ""])[1])
    rooms = ("fedmem", "client", "server", "flwr", "torch")
    loaded = [name for name in list(sys.modules) if name.split(".")[0] in rooms]
    with open(CALLS + f".{program}.{os.getpid()}", "w") as file:
        file.write("\\n".join(loaded))

atexit.register(modules)
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def environment(folder: Path, home: Path) -> dict[str, str]:
    """The environment of Flower's programs: a Flower home of the test's own, and the watch above."""
    (folder / "watch").mkdir()
    (folder / "watch" / "sitecustomize.py").write_text(WATCH)
    (folder / "flwr").mkdir()
    known = {
        "FEDMEM_HOME": str(home),
        "FLWR_HOME": str(folder / "flwr"),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{folder / 'watch'}{os.pathsep}{ROOT}",
        "OMP_NUM_THREADS": "1",
    }
    return {**os.environ, **SWITCHES, **known}


@contextlib.contextmanager
def superlink(known: dict[str, str], folder: Path, *options: str) -> Iterator[int]:
    """A SuperLink on a free port, named in Flower's home as the one to run on; ended with the block."""
    port = free_port()
    config = f'[superlink]\ndefault = "test"\n\n[superlink.test]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    (Path(known["FLWR_HOME"]) / "config.toml").write_text(config)
    command = [
        str(BIN / "flower-superlink"), "--insecure", "--isolation", "subprocess",
        "--host", "127.0.0.1", "--port", str(port), *options,
    ]  # fmt: skip
    with (folder / "superlink.log").open("wb") as log:
        process = subprocess.Popen(command, env=known, stdout=log, stderr=log, cwd=folder)
        try:
            deadline = time.monotonic() + 60
            while not answers(f"http://127.0.0.1:{port}/health"):
                assert process.poll() is None, (folder / "superlink.log").read_text()
                assert time.monotonic() < deadline, "the SuperLink did not start"
                time.sleep(0.2)
            yield port
        finally:
            process.terminate()
            process.wait(30)
