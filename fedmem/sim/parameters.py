"""Save anchor and bank between phases, in one safetensors file of float32 parameters.

Invariants
- Parameters that are saved and loaded again are equal bit for bit.
- The file holds public parameters only. Private blocks stay in the vault.
"""

from pathlib import Path

from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor
from transformers import PreTrainedModel

from fedmem.memory.spec import MemorySpec
from fedmem.storage.files import Files
from fedmem.training.bank_state import BankState


def save(path: Path, model: PreTrainedModel, state: BankState | None = None) -> None:
    """Write the anchor and, if given, the bank to `path`; the old file is replaced durably.

    Tied weights are written once.

    Args:
        path: the file.
        model: the anchor.
        state: the bank; None to write the anchor alone.

    Raises:
        StorageError: writing failed; the old file is intact.
    """
    tensors: dict[str, Tensor] = {f"anchor.{name}": p.data.contiguous() for name, p in model.named_parameters()}
    if state:
        tensors |= {f"level-{n}": blocks for n, blocks in enumerate(state.levels, start=1)} | {"generic": state.generic}
    Files().replace(path, to_bytes(tensors))


def load(path: Path, model: PreTrainedModel, spec: MemorySpec) -> BankState | None:
    """Set the anchor's parameters in place and return the bank, or None if the file holds no bank.

    Args:
        path: a file that `save` wrote.
        model: the anchor.
        spec: the shape of the bank.
    """
    tensors = load_file(path)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(tensors[f"anchor.{name}"])
    if "generic" not in tensors:
        return None
    levels = sorted(name for name in tensors if name.startswith("level-"))
    return BankState(spec, [tensors[name] for name in levels], tensors["generic"])
