"""Measure the held-out loss of a trainer in its current state, with the blocks of each row's path if it has a bank.

Invariants
- A measurement changes no parameter. It reads the same rows each time.

Shapes: M rows, B rows of a batch, T tokens, V vocabulary.
"""

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from fedmem.memory.block import make_source
from fedmem.training.loop import Trainer
from fedmem.training.packed_dataset import Rows
from fedmem.training.sequences import readable, token_losses

HELDOUT_ROWS, HELDOUT_BATCH = 64, 16


@torch.no_grad()
def heldout_loss(trainer: Trainer, rows: Rows) -> float:
    """Return the mean loss in nats per predicted token, over at most HELDOUT_ROWS evenly spaced rows.

    Args:
        trainer: anchor, and bank if there is one.
        rows: held-out rows with their paths; at least one.
    """
    numbers_M = np.unique(np.linspace(0, len(rows) - 1, HELDOUT_ROWS).astype(np.int64))
    total, count = 0.0, 0
    for start in range(0, len(numbers_M), HELDOUT_BATCH):
        chosen_B = numbers_M[start : start + HELDOUT_BATCH]
        tokens_BT, positions_BT = rows.packed.batch(chosen_B)
        with _blocks_in_use(trainer, rows, chosen_B):
            logits_BTV = trainer.model(readable(tokens_BT), position_ids=positions_BT, use_cache=False).logits
        loss_BT, mask_BT = token_losses(logits_BTV, tokens_BT, positions_BT)
        total, count = total + float(loss_BT.double().sum()), count + int(mask_BT.sum())
    return total / max(1, count)


def _blocks_in_use(trainer: Trainer, rows: Rows, chosen_B: np.ndarray) -> AbstractContextManager[None]:
    """Return a context in which the model uses the blocks of these rows. Without a bank the context does nothing."""
    if not (bank := trainer.bank):
        return nullcontext()
    not_generic_B = torch.zeros(len(chosen_B), dtype=torch.bool)
    fetched = bank.leaf(torch.from_numpy(rows.paths_MP[chosen_B]), not_generic_B, trainer.model.device)
    return bank.memory.using(make_source(bank.spec, fetched.leaf_BX))
