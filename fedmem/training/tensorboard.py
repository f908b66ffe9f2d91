"""Scalars for TensorBoard, where its package is installed.

scalars = Scalars(Path("logs"))
Watch(scalar=scalars.add)
"""

from pathlib import Path
from typing import Any

from fedmem.installed import package


class Scalars:
    """Writes figures into a folder that TensorBoard reads. Raises UsageError, naming the command, without it."""

    def __init__(self, folder: Path) -> None:
        package("tensorboard", "pip install tensorboard")
        writer: Any = package("torch.utils.tensorboard", "pip install tensorboard")
        self._writer = writer.SummaryWriter(str(folder))

    def add(self, name: str, step: int, value: float) -> None:
        """Write one figure."""
        self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left, and close the file."""
        self._writer.close()
