"""Read and write a run's folder: the facts of each phase, and the files that phases leave for later ones.

Invariants
- A phase is done when its facts are in `state/phases.json`. The file is replaced atomically, so a kill leaves the old
  one.
- No private text is written here in the clear. Vaults lie below `vaults/`, and their key slots lie elsewhere.

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
    """Replace `path` durably by `value` as JSON.

    Args:
        path: the file.
        value: the value; it holds neither NaN nor infinity.

    Raises:
        StorageError: writing failed; the old file is intact.
    """
    Files().replace(path, json.dumps(value, indent=1, allow_nan=False).encode())


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Args:
        path: the file.

    Raises:
        VerificationFailed: the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VerificationFailed(
            f"{path.name} in {path.parent.name} is damaged; start a new run with --fresh."
        ) from error


@dataclass(frozen=True)
class RunFolder:
    """The paths below one run, and the facts of its finished phases.

    Attributes:
        root: the folder of the run.
    """

    root: Path

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.root.name

    @property
    def state(self) -> Path:
        """The folder of the files that phases leave for later ones; public parameters only."""
        return self.root / "state"

    @property
    def releases(self) -> Path:
        """The folder of releases; each release is a folder named by its digest."""
        return self.root / "releases"

    @property
    def receipts(self) -> Path:
        """The folder with copies of erasure receipts."""
        return self.root / "receipts"

    @property
    def report(self) -> Path:
        """The path of the report."""
        return self.root / "report.html"

    @property
    def run_json(self) -> Path:
        """The path of the results, which `fedmem sim show` prints."""
        return self.root / "run.json"

    def vault(self, device: int) -> Path:
        """Return the path of a device's vault.

        Args:
            device: the index of the device.
        """
        return self.root / "vaults" / subject_of(device)

    def create(self, inputs: Facts) -> None:
        """Create the folder with the inputs of the run; after a crash it is complete or absent.

        Args:
            inputs: id, scenario, seed and corpus of the run.

        Raises:
            StorageError: the folder cannot be created.
        """
        with storage_errors("create the run's folder"):
            self.root.parent.mkdir(parents=True, exist_ok=True)
            new_folder = RunFolder(Path(tempfile.mkdtemp(dir=self.root.parent, prefix=".making-")))
            for path in (new_folder.state, new_folder.releases, new_folder.receipts, new_folder.root / "vaults"):
                path.mkdir()
            write_json(new_folder.state / "inputs.json", inputs)
            new_folder.root.rename(self.root)

    def is_run(self) -> bool:
        """Return True if this is the folder of a run."""
        return (self.state / "inputs.json").exists()

    def facts(self) -> dict[str, Facts]:
        """Return the facts of finished phases, by phase."""
        path = self.state / "phases.json"
        return read_json(path) if path.exists() else {}

    def finish_phase(self, phase: str, facts: Facts) -> None:
        """Record that a phase is done.

        Args:
            phase: the name of the phase.
            facts: its results, as JSON can hold them.

        Raises:
            StorageError: writing failed; the phase is not done.
        """
        write_json(self.state / "phases.json", self.facts() | {phase: facts})

    def inputs(self) -> Facts:
        """Return the inputs of the run."""
        inputs: Facts = read_json(self.state / "inputs.json")
        return inputs


def subject_of(device: int) -> str:
    """Return the subject of a simulated device's vault.

    Args:
        device: the index of the device.
    """
    return f"device-{device}"
