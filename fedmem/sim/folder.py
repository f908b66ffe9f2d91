"""A run's folder: facts per phase, and what the phases hand to each other.

Invariants
- A phase is done when its facts are in `state/phases.json`; it is replaced atomically, so a kill leaves the old one.
- Nothing private is ever written here in the clear; vaults lie below `vaults/`, their key slots elsewhere.

Layout: `run.json state/ releases/ vaults/ receipts/ ledger.jsonl report.html`.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmem.errors import VerificationFailed
from fedmem.storage.files import Files, storage_errors

Facts = dict[str, Any]


def write_json(path: Path, value: Any) -> None:
    """Replace `path` durably by `value` as JSON. Raises StorageError, with the old file whole."""
    Files().replace(path, json.dumps(value, indent=1, allow_nan=False).encode())


def read_json(path: Path) -> Any:
    """Read JSON. Raises VerificationFailed where the file is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VerificationFailed(
            f"{path.name} in {path.parent.name} is damaged; start a new run with --fresh."
        ) from error


@dataclass(frozen=True)
class RunFolder:
    """Paths below one run, and the facts of its finished phases."""

    root: Path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.root.name

    @property
    def state(self) -> Path:
        """What phases hand to each other; public parameters only."""
        return self.root / "state"

    @property
    def releases(self) -> Path:
        """Releases, each in a folder named by its digest."""
        return self.root / "releases"

    @property
    def receipts(self) -> Path:
        """Copies of erasure receipts."""
        return self.root / "receipts"

    @property
    def report(self) -> Path:
        """The report."""
        return self.root / "report.html"

    @property
    def run_json(self) -> Path:
        """What `sim show` shows."""
        return self.root / "run.json"

    def vault(self, device: int) -> Path:
        """Root of a device's vault."""
        return self.root / "vaults" / subject(device)

    def create(self, inputs: Facts) -> None:
        """Make the folder with what the run is started with: all of it, or nothing."""
        with storage_errors("create the run's folder"):
            self.root.parent.mkdir(parents=True, exist_ok=True)
            making = RunFolder(Path(tempfile.mkdtemp(dir=self.root.parent, prefix=".making-")))
            for path in (making.state, making.releases, making.receipts, making.root / "vaults"):
                path.mkdir()
            write_json(making.state / "inputs.json", inputs)
            making.root.rename(self.root)

    def known(self) -> bool:
        """Whether this is a run's folder."""
        return (self.state / "inputs.json").exists()

    def facts(self) -> dict[str, Facts]:
        """Facts of finished phases, by phase."""
        path = self.state / "phases.json"
        return read_json(path) if path.exists() else {}

    def finish(self, phase: str, facts: Facts) -> None:
        """Record a phase as done."""
        write_json(self.state / "phases.json", self.facts() | {phase: facts})

    def inputs(self) -> Facts:
        """What the run was started with."""
        inputs: Facts = read_json(self.state / "inputs.json")
        return inputs


def subject(device: int) -> str:
    """The subject of a simulated device's vault."""
    return f"device-{device}"
