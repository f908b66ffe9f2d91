"""What a training keeps beside its parameters: its inputs, its curve, and whom it tells.

Invariants
- A folder belongs to one set of inputs; others are refused before anything is touched.
- Inputs are public: settings and digests.

>>> TrainingTrace([{"step": 1}, {"step": 3}], 0.5).upto(2)
TrainingTrace(curve=[{'step': 1}], seconds=0.5)
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmem.errors import VerificationFailed, VersionMismatch
from fedmem.storage.canonical import digest
from fedmem.storage.files import Files

Inputs = dict[str, Any]
"""What a run is a function of: public settings and digests."""


def _quiet(*_: object) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Watch:
    """Whom to tell: `progress(phase, done, total, note)`, and `scalar(name, step, value)` for each figure."""

    progress: Callable[[str, int, int, str], None] = _quiet
    scalar: Callable[[str, int, float], None] = _quiet


@dataclass
class TrainingTrace:
    """What a run has to tell: points `{phase, step, loss, split}` of its curve, and seconds of training."""

    curve: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def upto(self, step: int) -> "TrainingTrace":
        """Without what came after `step`."""
        return TrainingTrace([point for point in self.curve if point["step"] <= step], self.seconds)


def claim(folder: Path, inputs: Inputs) -> str:
    """Make `folder` that of a training with these inputs; gives their digest. Raises VersionMismatch for another's."""
    path = folder / "state" / "inputs.json"
    if path.exists():
        known = read_json(path)
        differ = sorted(name for name in known | inputs if known.get(name) != inputs.get(name))
        if differ:
            raise VersionMismatch(
                f"The training in {folder} was begun with other inputs ({', '.join(differ)}). Give those again to go "
                "on with it, or train in another folder."
            )
    else:
        write_json(path, inputs)
    return digest(inputs)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` durably by `value` as JSON, making its folder. Raises StorageError, with the old file whole."""
    Files().make_folder(path.parent)
    Files().replace(path, json.dumps(value, indent=1, allow_nan=False).encode())


def read_json(path: Path) -> Any:
    """Read JSON. Raises NothingMatched where there is none, VerificationFailed where it is damaged."""
    try:
        return json.loads(Files().read(path))
    except ValueError as error:
        raise VerificationFailed(f"{path} is damaged; remove its folder to start the training again.") from error
