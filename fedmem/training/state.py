"""Keep the state of a training beside its parameters: its inputs, its curve, and its callbacks.

Invariants
- A folder belongs to one set of inputs. Other inputs are refused before anything is changed.
- Inputs are public: settings and digests.

>>> TrainingTrace([{"step": 1}, {"step": 3}], 0.5).keep_until(2)
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
"""The inputs that determine the result of a run: public settings and digests."""


def _ignore(*_: object) -> None:
    """Ignore a report."""


@dataclass(frozen=True)
class Watch:
    """The callbacks of a training.

    Attributes:
        progress: called as `progress(phase, done, total, note)` after each step.
        scalar: called as `scalar(name, step, value)` for each figure.
    """

    progress: Callable[[str, int, int, str], None] = _ignore
    scalar: Callable[[str, int, float], None] = _ignore


@dataclass
class TrainingTrace:
    """The curve of a run, as points `{phase, step, loss, split}`, and its seconds of training."""

    curve: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def keep_until(self, step: int) -> "TrainingTrace":
        """Return this trace without the points after a step.

        Args:
            step: the last step to keep.
        """
        return TrainingTrace([point for point in self.curve if point["step"] <= step], self.seconds)


def claim(folder: Path, inputs: Inputs) -> str:
    """Bind a folder to the inputs of a training.

    Args:
        folder: folder of the training.
        inputs: its inputs. They are written at the first call and compared at later ones.

    Returns:
        The digest of the inputs.

    Raises:
        VersionMismatch: the folder belongs to other inputs.
        VerificationFailed: the recorded inputs are damaged.
    """
    path = folder / "state" / "inputs.json"
    if path.exists():
        recorded = read_json(path)
        differing = sorted(name for name in recorded | inputs if recorded.get(name) != inputs.get(name))
        if differing:
            raise VersionMismatch(
                f"The training in {folder} was begun with other inputs ({', '.join(differing)}). Give those again to "
                "go on with it, or train in another folder."
            )
    else:
        write_json(path, inputs)
    return digest(inputs)


def write_json(path: Path, value: Any) -> None:
    """Write a value durably as JSON.

    Args:
        path: the file; its folder is made if needed.
        value: a value that JSON can represent, without NaN.

    Raises:
        StorageError: the disk refuses; the old file is unchanged.
    """
    Files().make_folder(path.parent)
    Files().replace(path, json.dumps(value, indent=1, allow_nan=False).encode())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: the file.

    Raises:
        NothingMatched: the file is missing.
        VerificationFailed: it is damaged.
    """
    try:
        return json.loads(Files().read(path))
    except ValueError as error:
        raise VerificationFailed(f"{path} is damaged; remove its folder to start the training again.") from error
