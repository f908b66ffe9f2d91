"""Greedy decoding with memory against plain models: `python -m benchmarks.decode --json`.

Preset `small`, batch 1, KV cache, a fetch of at least 9 % of the anchor. Arms: the bare anchor, memory attached, a
plain model of the same widened FFN, and the materialised fetch. Ratios are of speed: above 1 is faster. One thread: a
token of so small a model is too little work to share, and two threads wait longer for each other than they save."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks import harness
from fedmem.anchor.presets import new_anchor
from fedmem.memory.attach import attach
from fedmem.memory.block import make_source
from fedmem.memory.materialise import materialise
from fedmem.memory.sites import spec_for

VOCABULARY, WIDTHS, PROMPT = 4096, (56, 24, 8), 16


def decode(model: Any, prompt_1T: torch.Tensor, count: int) -> torch.Tensor:
    """Decode `count` greedy tokens after a prompt, with one forward pass each."""
    tokens, cache, found = prompt_1T, None, []
    with torch.inference_mode():
        for _ in range(count):
            out = model(input_ids=tokens, past_key_values=cache, use_cache=True)
            cache, tokens = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
            found.append(tokens)
    return torch.cat(found, 1)


def main() -> None:
    """Time the arms in turns."""
    arguments = harness.options(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    count, turns = (96, 25) if arguments.quick else (128, 60)
    model, prompt = new_anchor("small", VOCABULARY, 0).eval(), torch.arange(2, 2 + PROMPT)[None]
    bare = new_anchor("small", VOCABULARY, 0).eval()
    spec = spec_for(model, "ffn", 16, WIDTHS)
    fetched_X = 0.02 * torch.randn(spec.fetch_size, generator=torch.Generator().manual_seed(0))
    plain, widened = materialise(model, spec, fetched_X), materialise(model, spec, 0 * fetched_X)
    memory = attach(model)

    def attached() -> None:
        with memory.using(make_source(spec, fetched_X[None])):
            decode(model, prompt, count)

    arms: dict[str, Callable[[], object]] = {
        "anchor": lambda: decode(bare, prompt, count),
        "memory": attached,
        "widened": lambda: decode(widened, prompt, count),
        "materialised": lambda: decode(plain, prompt, count),
    }
    seconds = harness.turns(arms, turns)
    pairs = [("memory", "widened"), ("materialised", "widened"), ("memory", "anchor")]
    found = {f"{a}_over_{b}": harness.ratio(seconds[b], seconds[a]) for a, b in pairs}
    data = {
        "ratio": {name: value for name, (value, _) in found.items()},
        "interval": {f"ratio.{name}": bounds for name, (_, bounds) in found.items()},
        "tokens_per_second": {name: count / float(np.median(values)) for name, values in seconds.items()},
        "fetched_share": spec.fetch_size / sum(p.numel() for p in bare.parameters()),
        "machine": harness.machine(),
    }
    harness.emit("decode", data, arguments)


if __name__ == "__main__":
    main()
