"""Write scalars for TensorBoard, if its package is installed.

scalars = Scalars(Path("logs"))
Watch(scalar=scalars.add)
"""

from pathlib import Path
from typing import Any

from fedmem.installed import package


class Scalars:
    """A writer of figures into a folder that TensorBoard reads.

    Args:
        folder: folder of the logs.

    Raises:
        UsageError: TensorBoard is not installed; the message names the command.
    """

    def __init__(self, folder: Path) -> None:
        package("tensorboard", "pip install tensorboard")
        writer: Any = package("torch.utils.tensorboard", "pip install tensorboard")
        self._writer = writer.SummaryWriter(str(folder))

    def add(self, name: str, step: int, value: float) -> None:
        """Write the value of one figure at a step.

        Args:
            name: name of the figure.
            step: step of the training, from 0.
            value: its value.
        """
        self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write all figures to disk, and close the file."""
        self._writer.close()
