"""A DP-SGD step of a private block against its plain step: `python -m benchmarks.private_step --json`.

A frozen anchor of width 256 with 4 layers, 32 records of 128 tokens in each batch (8 with `--quick`), block widths 64
and 512. Arms, in
turns: plain (one backward pass, the mean loss), our engine `fused`, Opacus' hooks behind the same function, and
Opacus' ghost clipping, whose second backward pass walks the anchor again. Peak memory: of a process of its own that
makes three steps, above what it held before the first. The private engines compute each record alone.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from torch import nn

from benchmarks import harness
from fedmem.anchor.presets import Shape, new_anchor
from fedmem.memory.attach import Memory, attach
from fedmem.memory.block import make_shared_source, new_blocks
from fedmem.memory.sites import spec_for
from fedmem.memory.spec import MemorySpec
from fedmem.privacy.dpsgd import add_noise, clipped_sum
from fedmem.privacy.gradients import PrivateSequences, RuntimeOptions, batch_loss, frozen, per_record
from fedmem.privacy.grid import Grid
from fedmem.privacy.opacus import LinearBlock
from fedmem.privacy.rounded_gaussian import rounded_gaussian
from fedmem.privacy.stream import PrivacyStream

ANCHOR, VOCABULARY, LENGTH = Shape(layers=4, d_model=256, ffn=768, heads=8), 4096, 128
WIDTHS, CLIP, NOISE = (64, 512), 0.1, 1.0
BATCH, TURNS = 32, 24
QUICK_BATCH, QUICK_TURNS = 8, 4

Step = Callable[[], object]


class Arms:
    """The steps of each arm over the same anchor, records and block."""

    def __init__(self, width: int, batch: int, open_: ExitStack) -> None:
        self.open, self.numbers_N = open_, np.arange(batch)
        self.model = new_anchor(ANCHOR, VOCABULARY, 0)
        self.memory: Memory = attach(self.model)
        self.spec: MemorySpec = spec_for(self.model, "ffn", 1, (width,))
        tokens_NT = torch.from_numpy(np.random.default_rng(0).integers(2, VOCABULARY, (batch, LENGTH)))
        self.data = PrivateSequences(tokens_NT, self.numbers_N, batch)
        self.grid = Grid.fitting(CLIP, NOISE, self.spec.fetch_size, batch)
        self.stream = PrivacyStream(bytes(32), b"benchmark")

    def block(self) -> tuple[nn.Parameter, torch.optim.Optimizer]:
        """Return a new block and its optimiser."""
        block = nn.Parameter(new_blocks(self.spec, 1, 1, torch.Generator().manual_seed(0))[0])
        return block, torch.optim.Adam([block], lr=1e-3)

    def plain(self) -> Step:
        """Return the step with one backward pass of the mean loss."""
        block, adam = self.block()

        def step() -> None:
            for_all = make_shared_source(self.spec, block)
            loss = batch_loss(self.model, self.memory, for_all, self.data, self.numbers_N, False)
            (loss / len(self.numbers_N)).backward()
            adam.step()
            adam.zero_grad()

        return step

    def private(self, runtime: RuntimeOptions) -> Step:
        """Return the step of `fedmem.privacy.dpsgd`, with noise."""
        block, adam = self.block()
        engine = per_record(self.model, self.memory, self.spec, self.data, runtime)
        gradients, everyone_N = self.open.enter_context(engine), np.ones(len(self.numbers_N), bool)

        def step() -> None:
            clipped = clipped_sum(gradients, block.data, self.data, everyone_N, self.grid)
            noisy_X = add_noise(clipped, NOISE, self.stream.substream(b"noise"))
            block.grad = noisy_X.double().mul_(self.grid.spacing / len(everyone_N)).float()
            adam.step()

        return step

    def ghost(self) -> Step:
        """Return the step with Opacus' ghost clipping: a backward pass for norms, a second one for the clipped sum."""
        block = LinearBlock(self.spec)
        block.load(self.block()[0].data)
        adam = torch.optim.Adam(block.parameters(), lr=1e-3)
        hooks = GradSampleModuleFastGradientClipping(
            block, max_grad_norm=CLIP, loss_reduction="sum", use_ghost_clipping=True
        )

        def step() -> None:
            hooks.enable_hooks()
            loss = batch_loss(self.model, self.memory, block, self.data, self.numbers_N, False)
            loss.backward(retain_graph=True)
            norms_B = hooks.get_norm_sample()
            adam.zero_grad()
            hooks.disable_hooks()
            # The weights of the records would enter here; their number and place do not change the time.
            (loss * (CLIP / norms_B.max())).backward()
            adam.step()
            adam.zero_grad()

        return step

    def noise(self) -> Step:
        """Return the step that only draws the noise of one step."""
        std = self.grid.std(NOISE)
        return lambda: rounded_gaussian(self.stream.substream(b"noise"), self.spec.fetch_size, std)


def timed(width: int, batch: int, turns: int) -> dict[str, np.ndarray]:
    """Return seconds of each arm at a width."""
    with ExitStack() as stack:
        arms = Arms(width, batch, stack)
        stack.enter_context(frozen(arms.model))
        steps = {
            "plain": arms.plain(),
            "fused": arms.private(RuntimeOptions()),
            "opacus_hooks": arms.private(RuntimeOptions(engine="opacus")),
            "opacus_ghost": arms.ghost(),
            "noise": arms.noise(),
        }
        return harness.turns(steps, turns)


def peak(arm: str, width: int, batch: int) -> int:
    """Return bytes that three steps of an arm add to the peak of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.private_step", "--peak-of", f"{arm},{width},{batch}"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)  # noqa: S603


def tell_peak(arm: str, width: int, batch: int) -> None:
    """Print the bytes that `peak` asks for, in its own process."""
    with ExitStack() as stack:
        arms = Arms(width, batch, stack)
        stack.enter_context(frozen(arms.model))
        step = arms.plain() if arm == "plain" else arms.private(RuntimeOptions())
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew (Linux)
        before = harness.status("VmRSS")
        for _ in range(3):
            step()
        print(harness.status("VmHWM") - before)


def figures(batch: int, turns: int) -> dict[str, Any]:
    """Return ratios of the arms at both widths, and of the peaks."""
    data: dict[str, Any] = {"ratio": {}, "interval": {}, "seconds": {}}
    for width in WIDTHS:
        seconds = timed(width, batch, turns)
        data["seconds"][f"r{width}"] = {name: float(np.median(values)) for name, values in seconds.items()}
        for arm in ("fused", "opacus_hooks", "opacus_ghost"):
            _add(data, f"{arm}_over_plain_r{width}", *harness.ratio(seconds[arm], seconds["plain"]))
        if width == WIDTHS[0]:
            _add(data, "noise_share", *harness.ratio(seconds["noise"], seconds["fused"]))
    peaks = {f"r{width}": {arm: peak(arm, width, batch) for arm in ("plain", "fused")} for width in WIDTHS}
    data["ratio"] |= {"peak_memory": max(found["fused"] / found["plain"] for found in peaks.values())}
    return data | {"peak_bytes": peaks}


def _add(data: dict[str, Any], name: str, found: float, interval: list[float]) -> None:
    data["ratio"][name] = found
    data["interval"][f"ratio.{name}"] = interval


def main() -> None:
    """Time the steps in turns, then measure the peaks."""
    parser = harness.options(__doc__ or "")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        arm, width, batch = arguments.peak_of.split(",")
        tell_peak(arm, int(width), int(batch))
        return
    batch, turns = (QUICK_BATCH, QUICK_TURNS) if arguments.quick else (BATCH, TURNS)
    data = figures(batch, turns) | {"records": batch, "machine": harness.machine()}
    harness.emit("private_step", data, arguments)


if __name__ == "__main__":
    main()
