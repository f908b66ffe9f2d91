"""The work of every arm on a device, and its timing.

Invariants
- Empty rounds carry `EMPTY` parameters and train nothing. Rounds with work run the same local steps in every arm: a
  `nano` anchor, plain AdamW, one seed a device and round.
- CPU seconds are those of the arm's process and all that it started, so that an arm with helpers does not hide them.
"""

import os
import resource
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch

from fedmem.anchor.presets import new_anchor
from fedmem.anchor.tokenizer import train_tokenizer
from fedmem.eval.perplexity import mean_loss, sequence_losses
from fedmem.federation.device import device_seed
from fedmem.sim.sources import wikipedia
from fedmem.training.local import Federated, Params
from fedmem.training.packing import Packed, pack
from fedmem.training.sequences import Sequences, encode
from fedmem.training.settings import Settings

EMPTY = 1000
VOCABULARY, LENGTH, BATCH, LR = 2048, 128, 4, 1e-3
TEXTS, HELDOUT, DEVICES = 1500, 100, 8
TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Timed:
    """The start and end of each round of an arm. `lap` is called before the first round and after each.

    CPU seconds are taken only where rounds have work: to ask for them takes milliseconds.
    """

    work: bool
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def lap(self) -> None:
        """Record the end of a round."""
        if self.work:
            self.cpu.append(cpu_seconds())
        self.wall.append(time.perf_counter())

    def rounds(self) -> dict[str, list[float]]:
        """Return seconds and CPU seconds of every round but the first, which warms up."""
        return {"wall": np.diff(self.wall)[1:].tolist(), "cpu": np.diff(self.cpu)[1:].tolist()}


def cpu_seconds() -> float:
    """Return CPU seconds of this process and of everything below it, ended or not."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime + sum(_spent(pid) for pid in _descendants(os.getpid()))


def _descendants(root: int) -> Iterable[int]:
    parents = {int(path.name): _parent(path) for path in Path("/proc").glob("[0-9]*")}
    for pid in parents:
        above = pid
        while above := parents.get(above, 0):
            if above == root:
                yield pid


def _fields(path: Path) -> list[str]:
    try:
        return (path / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it ended meanwhile
        return ["", "0"] + ["0"] * 20


def _parent(path: Path) -> int:
    return int(_fields(path)[1])


def _spent(pid: int) -> float:
    found = _fields(Path(f"/proc/{pid}"))
    return (int(found[11]) + int(found[12])) / TICK


@cache
def anchor() -> Federated:
    """Return the anchor that rounds with work train."""
    torch.set_num_threads(1)
    return Federated(new_anchor("nano", VOCABULARY, 0), None, ["anchor"])


@cache
def _text() -> Sequences:
    texts = [document.text for document in wikipedia.load()[:TEXTS]]
    return encode(train_tokenizer(texts, VOCABULARY), texts, LENGTH)


@cache
def rows(device: int) -> Packed:
    """Return a device's sequences: every `DEVICES`th lead that is not held out."""
    tokens_NT = _text().tokens_NT[HELDOUT:][device::DEVICES]
    return pack(Sequences(tokens_NT, np.arange(len(tokens_NT))))


def loss(params: Params) -> float:
    """Return held-out loss in nats."""
    anchor().load(params)
    return mean_loss(sequence_losses(anchor().model, _text().tokens_NT[:HELDOUT]))


def train(params: Params, device: int, number: int, steps: int) -> Params:
    """Do the local steps of one device in one round. Without steps, return the parameters unchanged."""
    if not steps:
        return params
    settings = Settings(steps, BATCH, LR, final=1.0, warmup=1)
    return anchor().train(params, rows(device), np.zeros((0, 0)), settings, device_seed(0, device, number))


def start(steps: int) -> Params:
    """Return the parameters before the first round."""
    return anchor().params() if steps else {"w": np.zeros(EMPTY, np.float32)}
