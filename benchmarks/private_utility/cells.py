"""One training of a private block and its held-out loss: a pure function of (anchor, topic, arm, seed).

The anchor is a `nano` one that saw public leads alone. Without privacy the same block is trained with the same
sampling, neither clipped nor noisy.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.private_utility.text import Topic, public
from fedmem.anchor.presets import new_anchor
from fedmem.anchor.tokenizer import train_tokenizer
from fedmem.eval.perplexity import mean_loss, sequence_losses
from fedmem.memory.attach import Memory, attach
from fedmem.memory.block import make_shared_source, new_blocks
from fedmem.memory.sites import spec_for
from fedmem.memory.spec import MemorySpec
from fedmem.privacy.dpsgd import Optimiser, State, train_block
from fedmem.privacy.gradients import PrivateSequences, RuntimeOptions
from fedmem.privacy.plan import PrivacyPlan
from fedmem.privacy.stream import PrivacyStream
from fedmem.training.loop import Trainer
from fedmem.training.packing import pack
from fedmem.training.sequences import encode
from fedmem.training.settings import Settings

VOCABULARY, LENGTH, BATCH, LR = 2048, 128, 4, 3e-3
RUNTIME = RuntimeOptions(micro_batch=64)
NO_CLIP = 1e3  # no gradient is near it, and its grid is fine
CAP = 10_000
SMALL = PrivacyPlan.small(record_cap=CAP)


@dataclass(frozen=True)
class Arm:
    """One setting that is trained: `epsilon` 0 means without privacy; `average` is the share of the last iterates whose
    mean is the block; `warm` starts from a block of public text."""

    name: str
    epsilon: float = 8.0
    plan: PrivacyPlan = SMALL
    optimiser: Optimiser = field(default_factory=Optimiser)
    width: int = 16
    average: float = 0.0
    warm: bool = False

    def calibrated(self) -> PrivacyPlan:
        """Return the plan with the noise that its epsilon needs."""
        return self.plan.calibrate(self.epsilon) if self.epsilon else replace(self.plan, clip=NO_CLIP)


class Bench:
    """The anchor and what all runs share."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps

    @cached_property
    def _texts(self) -> tuple[list[str], dict[str, Topic]]:
        return public()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return train_tokenizer(self._texts[0], VOCABULARY)

    @property
    def stand_ins(self) -> dict[str, Topic]:
        """Return public topics that the anchor never saw."""
        return self._texts[1]

    @cached_property
    def model(self) -> PreTrainedModel:
        model = new_anchor("nano", VOCABULARY, 0)
        start = self._kept("anchor", lambda: self._trained(model))
        for name, parameter in model.named_parameters():
            parameter.data.copy_(start[name])
        return model

    def _trained(self, model: PreTrainedModel) -> dict[str, Tensor]:
        rows = pack(encode(self.tokenizer, self._texts[0], LENGTH))
        Trainer(model, rows, Settings(self.steps, BATCH, LR), 0).run()
        return {name: parameter.data for name, parameter in model.named_parameters()}

    def start(self, spec: MemorySpec, memory: Memory, warm: bool) -> Tensor:
        """Return the first rows: new ones, or those of a block that learned public text."""
        new_X = new_blocks(spec, 1, 1, torch.Generator().manual_seed(0))[0]
        return (
            self._kept(f"warm-{spec.fetch_size}", lambda: {"rows": self._warm(spec, memory, new_X)})["rows"]
            if warm
            else new_X
        )

    def _warm(self, spec: MemorySpec, memory: Memory, new_X: Tensor) -> Tensor:
        texts = self._texts[0][:2000]
        plan = replace(SMALL, clip=NO_CLIP, sampling_rate=32 / len(texts), divisor=32.0)
        return train_block(self.model, memory, spec, new_X, self._sequences(texts), plan, _stream(), runtime=RUNTIME)

    def _kept(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        path = self.folder / f"{name}-{self.steps}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(make(), path)
        return load_file(path)

    def _sequences(self, texts: list[str]) -> PrivateSequences:
        encoded = encode(self.tokenizer, texts, LENGTH)
        return PrivateSequences(encoded.tokens_NT, encoded.document_N, len(texts))

    def without(self, topic: Topic) -> float:
        """Return held-out loss of the anchor alone, in nats."""
        return mean_loss(sequence_losses(self.model, encode(self.tokenizer, topic.heldout, LENGTH).tokens_NT))

    def run(self, topic: Topic, arm: Arm) -> float:
        """Return held-out loss with the block of an arm, in nats."""
        memory, spec = attach(self.model), spec_for(self.model, "ffn", 1, (arm.width,))
        plan, kept = arm.calibrated(), list[Tensor]()

        def watch(state: State) -> None:
            if state.step > plan.steps * (1 - arm.average):
                kept.append(state.block_X.clone())

        try:
            start_X = self.start(spec, memory, arm.warm)
            data = self._sequences(topic.train)
            options: dict[str, Any] = {"optimiser": arm.optimiser, "runtime": RUNTIME, "watch": watch}
            last_X = train_block(self.model, memory, spec, start_X, data, plan, _stream(), **options)
            block_X = torch.stack(kept).mean(0) if kept else last_X
            tokens_NT = encode(self.tokenizer, topic.heldout, LENGTH).tokens_NT
            return mean_loss(
                sequence_losses(self.model, tokens_NT, memory, lambda _: [make_shared_source(spec, block_X)])
            )
        finally:
            memory.detach()


def _stream() -> PrivacyStream:
    """Return noise and draws of one run; not seeded, as in a vault."""
    return PrivacyStream(secrets.token_bytes(32), b"benchmark")
