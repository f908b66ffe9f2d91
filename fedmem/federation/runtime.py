"""Read the runtime folder of a running device, in the network-facing process.

Invariants
- The folder has mode 0700 and the token's file 0600. The token is never an argument or an environment variable.
- Terms and release are public. No file names a vault.

Files: `socket`, `token`, `terms.json` (agreement and shapes), `release` (a link to the release's folder), `lock`.

    runtime = Runtime.from_environment()
    port = SocketPort(runtime.folder, runtime.terms(), runtime.token())
"""

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmem.errors import Refused
from fedmem.federation.socket_protocol import TOKEN_BYTES
from fedmem.federation.terms import Agreement, Terms

DEVICE = "FEDMEM_DEVICE"
"""Environment variable with the path of the runtime folder."""
TOKEN, TERMS, RELEASE = "token", "terms.json", "release"


@dataclass(frozen=True)
class Runtime:
    """A runtime folder that a vault process has made.

    Attributes:
        folder: path of the runtime folder.
    """

    folder: Path

    @classmethod
    def from_environment(cls) -> "Runtime":
        """Return the runtime folder that `FEDMEM_DEVICE` names. Raises Refused where it names none."""
        folder = os.environ.get(DEVICE)
        if not folder:
            raise Refused(f"{DEVICE} names no runtime folder. Start the SuperNode with `fedmem client run`.")
        return cls(Path(folder))

    def token(self) -> bytes:
        """Return the run's token, 32 bytes. Raises Refused where others may read it, or it has another length."""
        handle = os.open(self.folder / TOKEN, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(handle, "rb") as file:
            status, token = os.fstat(handle), file.read(TOKEN_BYTES + 1)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077 or len(token) != TOKEN_BYTES:
            raise Refused("The run's token may be read by others or is damaged. Start `fedmem client run` again.")
        return token

    def agreement(self) -> Agreement:
        """Return the agreement of the vault process: the content of its terms file."""
        return Agreement.from_dict(self._terms()["agreement"])

    def terms(self) -> Terms:
        """Return plan and shapes. Both processes compare their digest."""
        shapes = {name: tuple(map(int, shape)) for name, shape in self._terms()["shapes"].items()}
        return Terms(self.agreement().plan, shapes)

    def release(self) -> Path:
        """Return the folder of the release."""
        return (self.folder / RELEASE).resolve()

    def _terms(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.folder / TERMS).read_bytes())
        return values
