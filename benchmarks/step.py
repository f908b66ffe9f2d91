"""A training step with memory against the same step without, at equal tokens: `python -m benchmarks.step --json`.

Preset `small`, a fetch of at least 9 % of the anchor, another path for every sequence of a batch. Floor: the fetch's
share of the parameters is its share of the FLOPs; what is above it is gathering, scattering and the blocks' own
optimiser.
"""

import numpy as np
import torch

from benchmarks import harness
from fedmem.anchor.presets import new_anchor
from fedmem.memory.attach import attach
from fedmem.memory.sites import spec_for
from fedmem.training.bank_state import BankState
from fedmem.training.loop import Trainer, in_memory
from fedmem.training.packing import Packed
from fedmem.training.settings import Settings, TrainedParts

VOCABULARY, LENGTH, BATCH, BRANCHING, WIDTHS = 4096, 256, 16, 16, (56, 24, 8)


def main() -> None:
    """Time the two steps in turns."""
    arguments = harness.options(main.__doc__ or "").parse_args()
    rng = np.random.default_rng(0)
    tokens_MT = torch.from_numpy(rng.integers(2, VOCABULARY, (BATCH, LENGTH)))
    packed = Packed(tokens_MT, torch.arange(LENGTH).expand_as(tokens_MT), np.arange(BATCH))
    plain, model = new_anchor("small", VOCABULARY, 0), new_anchor("small", VOCABULARY, 0)
    spec = spec_for(model, "ffn", BRANCHING, WIDTHS)
    leaves = rng.choice(BRANCHING ** len(WIDTHS), BATCH, replace=False)
    paths_MP = np.stack([leaves // BRANCHING**n for n in range(len(WIDTHS) - 1, -1, -1)], axis=1)
    settings = Settings(steps=10**6, batch=BATCH, lr=1e-4, memory_lr=1e-4)
    everything = TrainedParts(levels=frozenset(range(1, spec.levels + 1)))
    bank = in_memory(attach(model), BankState.new(spec, 0), paths_MP, settings, everything)
    arms = {
        "plain": Trainer(plain, packed, settings, seed=0).step,
        "memory": Trainer(model, packed, settings, seed=0, bank=bank).step,
    }
    seconds = harness.turns(arms, 6 if arguments.quick else 24)
    found, interval = harness.ratio(seconds["memory"], seconds["plain"])
    anchor = sum(p.numel() for p in plain.parameters())
    data = {
        "ratio": {"memory_over_plain": found},
        "interval": {"ratio.memory_over_plain": interval},
        "seconds": {name: float(np.median(values)) for name, values in seconds.items()},
        "tokens": BATCH * LENGTH,
        "fetched_share": spec.fetch_size / anchor,
        "distinct_paths": len(np.unique(paths_MP[:, -1])),
        "machine": harness.machine(),
    }
    harness.emit("step", data, arguments)


if __name__ == "__main__":
    main()
