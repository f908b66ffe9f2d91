"""Flower's SuperNode as a child of the vault process.

Invariants
- Its environment holds only the variables of `PASSED`, the outbound switches set to off, and the runtime folder.
- Its command line holds only addresses, file names of certificates and keys, and public settings.
- Flower installs nothing at run time. Each message is answered by a process of its own.
- It ends with this process: by SIGTERM at the end of the block, or by the kernel's signal if this process dies.

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
"""The environment variables that the SuperNode gets; none holds a secret or names a vault."""
PROGRAM = "flower-supernode"
GRACE = 20.0  # seconds between SIGTERM and SIGKILL


@dataclass(frozen=True)
class Options:
    """The settings of a SuperNode's connection to its SuperLink.

    Attributes:
        superlink: address of the SuperLink, host:port.
        insecure: True for a connection without TLS, to a SuperLink on this machine.
        root_certificates, private_key, trusted_entities: files for Flower's options of these names.
        port: port on 127.0.0.1 for the SuperNode's own processes.

    Raises:
        UsageError: the address has no port, or `insecure` is given together with root certificates.
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
            raise UsageError("A SuperLink's address has the form HOST:PORT.")
        if self.insecure and self.root_certificates:
            raise UsageError("A connection is insecure or has root certificates, not both.")

    def arguments(self) -> list[str]:
        """Return the SuperNode's command-line arguments."""
        files = {
            "--root-certificates": self.root_certificates,
            "--auth-supernode-private-key": self.private_key,
            "--trusted-entities": self.trusted_entities,
        }
        file_options = [word for name, file in files.items() if file for word in (name, str(file.absolute()))]
        fixed = ["--superlink", self.superlink, "--isolation", "subprocess", "--host", "127.0.0.1"]
        return [*fixed, "--port", str(self.port), *(["--insecure"] if self.insecure else []), *file_options]


def program() -> str:
    """Return the path of Flower's SuperNode program.

    Raises:
        NothingMatched: it is not installed.
    """
    path = shutil.which(PROGRAM, path=str(Path(sys.executable).parent)) or shutil.which(PROGRAM)
    if path is None:
        raise NothingMatched(f"{PROGRAM} is not installed. Install it: pip install 'fedmem[fl]'.")
    return path


def environment(values: Mapping[str, str], runtime: Runtime) -> dict[str, str]:
    """Return the SuperNode's environment.

    Args:
        values: the environment of this process.
        runtime: the runtime folder of the device.

    Raises:
        NothingMatched: Flower is not installed.
    """
    passed = {name: values[name] for name in PASSED if name in values}
    # The SuperNode starts its other programs by name, so they have to be on the PATH.
    path = f"{Path(program()).parent}{os.pathsep}{passed.get('PATH', os.defpath)}"
    return passed | SWITCHES | {"PATH": path, DEVICE: str(runtime.folder)}


@contextlib.contextmanager
def supernode(runtime: Runtime, options: Options, output: Any = None) -> Iterator["subprocess.Popen[bytes]"]:
    """Start the SuperNode, and end it at the end of the block.

    Args:
        output: the target of its stdout and stderr, as in `subprocess`; by default this process's stderr.

    Raises:
        NothingMatched: Flower is not installed.
    """
    launcher = [sys.executable, "-m", "fedmem.device.launcher", str(os.getpid()), program()]
    process = subprocess.Popen(  # noqa: S603 (a list, no shell)
        [*launcher, *options.arguments()], env=environment(os.environ, runtime), start_new_session=True,
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
