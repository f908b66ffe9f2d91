"""Flower's SuperNode as a child of the vault process.

Invariants
- Its environment holds names of `PASSED` only, the outbound switches set to off, and the runtime folder.
- Nothing of it is on a command line but addresses, file names of certificates and keys, and public settings.
- Flower installs nothing at run time; each message is answered by a process of its own.
- It ends with this process: by SIGTERM at the end of the block, or by the kernel's signal where this process dies.

    with supernode(runtime, Options("127.0.0.1:9092", insecure=True)) as process:
        process.poll()
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmem.errors import NothingMatched, UsageError
from fedmem.federation.offline import SWITCHES
from fedmem.federation.runtime import DEVICE, Runtime

PASSED = (
    "PATH", "HOME", "LANG", "FLWR_HOME", "PYTHONPATH", "OMP_NUM_THREADS", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_",
)  # fmt: skip
"""Names of this process's environment that the SuperNode gets; none holds a secret or names a vault."""
PROGRAM = "flower-supernode"
GRACE = 20.0  # seconds to end in


@dataclass(frozen=True)
class Options:
    """How the SuperNode reaches its SuperLink.

    Attributes:
        superlink: host:port.
        insecure: without TLS; for a SuperLink on this machine.
        root_certificates, private_key, trusted_entities: files, as Flower's options of these names take them.
        port: port on 127.0.0.1 for the SuperNode's own processes.
    """

    superlink: str
    insecure: bool = False
    root_certificates: Path | None = None
    private_key: Path | None = None
    trusted_entities: Path | None = None
    port: int = 9094

    def __post_init__(self) -> None:
        host, _, port = self.superlink.rpartition(":")
        if not host or not port.isdigit():
            raise UsageError("A SuperLink's address is HOST:PORT.")
        if self.insecure and self.root_certificates:
            raise UsageError("A connection is insecure or has root certificates, not both.")

    def words(self) -> list[str]:
        """Return the SuperNode's arguments."""
        files = {
            "--root-certificates": self.root_certificates,
            "--auth-supernode-private-key": self.private_key,
            "--trusted-entities": self.trusted_entities,
        }
        named = [word for name, file in files.items() if file for word in (name, str(file.absolute()))]
        fixed = ["--superlink", self.superlink, "--isolation", "subprocess", "--host", "127.0.0.1"]
        return [*fixed, "--port", str(self.port), *(["--insecure"] if self.insecure else []), *named]


def program() -> str:
    """Return the path of Flower's SuperNode. Raises NothingMatched where it is not installed."""
    path = shutil.which(PROGRAM, path=str(Path(sys.executable).parent)) or shutil.which(PROGRAM)
    if path is None:
        raise NothingMatched(f"{PROGRAM} is not installed. Install it: pip install 'fedmem[fl]'.")
    return path


def environment(values: Mapping[str, str], runtime: Runtime) -> dict[str, str]:
    """Return the SuperNode's environment, out of this process's `values`."""
    passed = {name: values[name] for name in PASSED if name in values}
    # The SuperNode starts its own programs by name.
    path = f"{Path(program()).parent}{os.pathsep}{passed.get('PATH', os.defpath)}"
    return passed | SWITCHES | {"PATH": path, DEVICE: str(runtime.folder)}


@contextlib.contextmanager
def supernode(runtime: Runtime, options: Options, output: Any = None) -> Iterator["subprocess.Popen[bytes]"]:
    """Start the SuperNode, and end it with the block.

    Args:
        output: where its stdout and stderr go, as `subprocess` takes it; to this process's stderr by default.

    Raises NothingMatched where it is not installed.
    """
    launcher = [sys.executable, "-m", "fedmem.device.launcher", str(os.getpid()), program()]
    process = subprocess.Popen(  # noqa: S603 (a list, no shell)
        [*launcher, *options.words()], env=environment(os.environ, runtime), start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=output or sys.stderr, stderr=output or sys.stderr,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
