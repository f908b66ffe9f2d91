"""A device's local steps on the federated parameters: anchor, whole levels of the shared bank, generic block.

Invariants
- Federated parameters are dense and have the same names and shapes for every device, whatever its records.
- `train` depends on (parameters, shareable sequences, paths, settings, seed) alone, and leaves no state behind.
- Levels that are not federated are frozen.

Names: `anchor.<parameter>`, `level-<l>`, `generic`; tied weights appear once.
"""

from collections.abc import Collection

import numpy as np
import torch
from transformers import PreTrainedModel

from fedmem.memory.attach import attach
from fedmem.memory.kinds import ActiveMemory
from fedmem.training.bank_state import BankState
from fedmem.training.loop import OnStep, cotrain, pretrain
from fedmem.training.packing import Packed
from fedmem.training.settings import Settings, Trained

Params = dict[str, np.ndarray]


class Federated:
    """One anchor and bank in memory, with the part of them that a federation trains.

    `parts`: which of `anchor`, `level-1` … and `generic` are federated. Without `state` it is the anchor alone,
    the control.
    """

    def __init__(self, model: PreTrainedModel, state: BankState | None, parts: Collection[str]) -> None:
        self.model, self.state, self.memory = model, state, attach(model)
        levels = (
            frozenset(n for n in range(1, len(state.levels) + 1) if f"level-{n}" in parts) if state else frozenset()
        )
        self.trained = Trained("anchor" in parts, levels, state is not None and "generic" in parts)

    def _tensors(self) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        if self.trained.anchor:
            found |= {f"anchor.{name}": p.data for name, p in self.model.named_parameters()}
        if self.state is None:
            return found
        found |= {f"level-{n}": self.state.levels[n - 1] for n in sorted(self.trained.levels)}
        return found | ({"generic": self.state.generic} if self.trained.generic else {})

    def params(self) -> Params:
        """Copies of the federated parameters, float32."""
        return {name: tensor.numpy().copy() for name, tensor in self._tensors().items()}

    def load(self, params: Params) -> None:
        """Set the federated parameters."""
        for name, tensor in self._tensors().items():
            tensor.copy_(torch.from_numpy(np.asarray(params[name], dtype=np.float32)))

    def sources(self, paths_BP: np.ndarray) -> list[ActiveMemory]:
        """The fetched blocks of a batch of paths; none without a bank."""
        return [self.state.source(paths_BP)] if self.state else []

    def train(
        self,
        params: Params,
        packed: Packed,
        paths_MP: np.ndarray,
        settings: Settings,
        seed: int,
        on_step: OnStep | None = None,
    ) -> Params:
        """Local steps from `params` on one device's shareable sequences, packed; returns the new parameters.

        Raises ValueError where there is no sequence to train on.
        """
        self.load(params)
        if self.state is None:
            pretrain(self.model, packed, settings, seed, on_step)
        else:
            cotrain(self.model, self.memory, self.state, packed, paths_MP, settings, seed, on_step, self.trained)
        return self.params()
