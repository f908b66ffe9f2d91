"""Train the federated parameters on a device: the anchor, whole levels of the shared bank, and the generic block.

Invariants
- Federated parameters are dense. They have the same names and shapes on every device, whatever its records.
- The result of `train` depends only on parameters, shareable sequences, paths, settings and seed. No state remains.
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
from fedmem.training.settings import Settings, TrainedParts

Params = dict[str, np.ndarray]


class Federated:
    """An anchor and a bank in memory, and the parts of them that a federation trains.

    Args:
        model: the anchor.
        state: the bank; None for the control, the anchor alone.
        parts: the federated parts, out of `anchor`, `level-1` … and `generic`.
    """

    def __init__(self, model: PreTrainedModel, state: BankState | None, parts: Collection[str]) -> None:
        self.model, self.state, self.memory = model, state, attach(model)
        levels = (
            frozenset(n for n in range(1, len(state.levels) + 1) if f"level-{n}" in parts) if state else frozenset()
        )
        self.trained = TrainedParts("anchor" in parts, levels, state is not None and "generic" in parts)

    def _federated_tensors(self) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {}
        if self.trained.anchor:
            tensors |= {f"anchor.{name}": p.data for name, p in self.model.named_parameters()}
        if self.state is None:
            return tensors
        tensors |= {f"level-{n}": self.state.levels[n - 1] for n in sorted(self.trained.levels)}
        return tensors | ({"generic": self.state.generic} if self.trained.generic else {})

    def params(self) -> Params:
        """Return copies of the federated parameters by name, float32."""
        return {name: tensor.numpy().copy() for name, tensor in self._federated_tensors().items()}

    def load(self, params: Params) -> None:
        """Set the federated parameters.

        Args:
            params: a value for each federated parameter by name, of its shape.
        """
        for name, tensor in self._federated_tensors().items():
            tensor.copy_(torch.from_numpy(np.asarray(params[name], dtype=np.float32)))

    def sources(self, paths_BP: np.ndarray) -> list[ActiveMemory]:
        """Return the fetched blocks of a batch of paths as a list of one memory source; empty without a bank.

        Args:
            paths_BP: `[B, P]`, block numbers from level 1 to the leaf.
        """
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
        """Take local steps from `params` on the shareable sequences of one device.

        Args:
            params: the federated parameters to start from.
            packed: the sequences, packed.
            paths_MP: the path of each packed row.
            settings: settings of the steps.
            seed: seed of the batches.
            on_step: called after each step.

        Returns:
            The new federated parameters, float32.

        Raises:
            ValueError: there is no sequence to train on.
        """
        self.load(params)
        if self.state is None:
            pretrain(self.model, packed, settings, seed, on_step)
        else:
            cotrain(self.model, self.memory, self.state, packed, paths_MP, settings, seed, on_step, self.trained)
        return self.params()
