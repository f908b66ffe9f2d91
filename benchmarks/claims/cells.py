"""One training run of the claims, a pure function of (scale, arm, seed, learning rate).

Every arm sees equal tokens in all. `none` and `plain` train once over all of them, their rate falling along a cosine;
the memory arms go on from an anchor that was pretrained on the first part at a constant rate, and train memory on the
rest while the rate falls [docs/method.md, §4]. All start from one tokenizer and one split.

Shapes: N sequences, M packed rows, P levels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from benchmarks.claims.text import Text
from fedmem.anchor.presets import PRESETS, Shape, new_anchor
from fedmem.anchor.tokenizer import train_tokenizer
from fedmem.eval.buckets import group_by_frequency, leaf_frequency
from fedmem.eval.controls import random_paths, second_best_paths, wrong_paths
from fedmem.eval.perplexity import mean_loss, sequence_losses
from fedmem.eval.retrieval import find_nearest, prepend_retrieved
from fedmem.eval.targets import Targets, target_losses
from fedmem.memory.attach import attach
from fedmem.memory.block import make_shared_source
from fedmem.memory.sites import spec_for
from fedmem.routing.embedder import StaticEmbedder
from fedmem.routing.router import prefix, route
from fedmem.routing.tree import train_tree
from fedmem.training.bank_state import BankState
from fedmem.training.loop import Trainer, in_memory
from fedmem.training.packing import pack
from fedmem.training.sequences import Sequences, encode
from fedmem.training.settings import Settings, TrainedParts

PREFIX = 24
WARMUP = 200
PARTS = 2
RETRIEVAL = (("short", False), ("retrieved", True))
Losses = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """Sizes of the miniature. `pretrain` and `memory` count steps of `batch` rows of `length` tokens."""

    name: str
    documents: int
    pretrain: int
    memory: int
    batch: int
    length: int
    vocabulary: int
    branching: int
    widths: tuple[int, ...]

    def first(self, arm: "Arm") -> int:
        """Return steps of the anchor alone, before there is memory."""
        return round(arm.anchor_share * (self.pretrain + self.memory)) or self.pretrain


@dataclass(frozen=True)
class Arm:
    """An arm to train: a `plain` model of some shape, or memory beside the anchor.

    `branching` 0 means the scale's. `anchor_share` is the share of all steps that train the anchor alone, its rate
    falling over them; 0 is the scale's, at a constant rate. `rate_of` names an arm whose learning rate is taken over;
    `anchor_lr` is the anchor's own, 0 the one that `none` picked. With `controls` other blocks than those of the text's
    path are measured too.
    """

    name: str
    shape: Shape = PRESETS["nano"]
    kind: str = ""
    frozen: bool = False
    anchor_share: float = 0.0
    random: bool = False
    widths: tuple[tuple[int, ...], ...] = ()
    branching: int = 0
    rate_of: str = ""
    anchor_lr: float = 0.0
    controls: bool = False


class Bench:
    """The inputs that all runs share: text as tokens, the tree, paths."""

    def __init__(self, scale: Scale, text: Text, folder: Path) -> None:
        self.scale, self.text, self.folder = scale, text, folder

    @cached_property
    def train(self) -> Sequences:
        return self._encode(self.text.train)

    @cached_property
    def heldout(self) -> Sequences:
        return self._encode(self.text.heldout)

    @cached_property
    def _tokenizer(self) -> Any:
        return train_tokenizer(self.text.train, self.scale.vocabulary)

    def _encode(self, texts: list[str]) -> Sequences:
        return encode(self._tokenizer, texts, self.scale.length)

    @cached_property
    def vectors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return embeddings of training documents, held-out documents and their first words."""
        embed, heads = StaticEmbedder().embed, [prefix(text, PREFIX) for text in self.text.heldout]
        return embed(self.text.train), embed(self.text.heldout), embed(heads)

    def tree(self, levels: int, branching: int) -> Any:
        return train_tree(self.vectors[0], branching=branching, levels=levels, seed=1)

    def short(self, retrieved: bool) -> tuple[Targets, np.ndarray]:
        """Return held-out texts of half the length, alone or after the nearest training text, and their documents."""
        half = encode(self._tokenizer, self.text.heldout, self.scale.length // 2)
        found_D = find_nearest(self.vectors[0], self.vectors[2])
        before = [self.text.train[n] if retrieved else "" for n in found_D[half.document_N]]
        return prepend_retrieved(self._tokenizer, half, before, self.scale.length), half.document_N

    def pretrained(self, arm: Arm, seed: int, lr: float) -> dict[str, torch.Tensor]:
        """Return the anchor after the first part of the tokens, once for all memory arms that share it."""
        shape, steps = arm.shape, self.scale.first(arm)
        share = f"-{arm.anchor_share:g}" if arm.anchor_share else ""
        path = self.folder / f"pretrained-{shape.d_model}-{seed}-{lr:g}{share}.safetensors"
        if not path.exists():
            model = new_anchor(shape, self.scale.vocabulary, seed)
            final = 0.1 if arm.anchor_share else 1.0
            settings = Settings(steps, self.scale.batch, lr, final=final, warmup=WARMUP)
            Trainer(model, pack(self.train), settings, seed).run()
            temporary = path.with_suffix(f".{lr:g}.tmp")
            save_file({name: p.data for name, p in model.named_parameters()}, temporary)
            temporary.rename(path)
        return load_file(path)


def run(bench: Bench, arm: Arm, seed: int, lr: float, start_lr: float) -> Losses:
    """Return held-out losses in nats of one run; `start_lr` is the rate that the anchor was pretrained with."""
    return _memory(bench, arm, seed, lr, arm.anchor_lr or start_lr) if arm.kind else _plain(bench, arm, seed, lr)


def _plain(bench: Bench, arm: Arm, seed: int, lr: float) -> Losses:
    scale, model = bench.scale, new_anchor(arm.shape, bench.scale.vocabulary, seed)
    settings = Settings(scale.pretrain + scale.memory, scale.batch, lr, warmup=WARMUP)
    Trainer(model, pack(bench.train), settings, seed).run()
    return {
        "loss": mean_loss(sequence_losses(model, bench.heldout.tokens_NT)),
        "parameters": sum(p.numel() for p in model.parameters()),
        **{name: mean_loss(target_losses(model, bench.short(found)[0])) for name, found in RETRIEVAL},
    }


def _memory(bench: Bench, arm: Arm, seed: int, lr: float, start_lr: float) -> Losses:
    scale, model = bench.scale, new_anchor(arm.shape, bench.scale.vocabulary, seed)
    steps = scale.pretrain + scale.memory - scale.first(arm)
    start = bench.pretrained(arm, seed, start_lr)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(start[name])
    spec = spec_for(model, arm.kind, arm.branching or scale.branching, arm.widths or scale.widths)
    tree = bench.tree(spec.levels, spec.branching)
    paths = {name: route(tree, v) for name, v in zip(("train", "heldout", "prefix"), bench.vectors, strict=True)}
    if arm.random:
        paths = {name: random_paths(p, seed + n) for n, (name, p) in enumerate(paths.items())}
    train_NP = paths["train"][bench.train.document_N]
    packed = pack(bench.train, train_NP[:, -1])
    settings = Settings(steps, scale.batch, start_lr, warmup=WARMUP, memory_lr=lr)
    state, memory = BankState.new(spec, seed), attach(model)
    trained = TrainedParts(not arm.frozen, frozenset(range(1, spec.levels + 1)))
    bank = in_memory(memory, state, train_NP[packed.first_M], settings, trained)
    trainer = Trainer(model, packed, settings, seed, bank, anchor=not arm.frozen)
    measure, growth = _measure(bench, model, memory, state), []
    for part in range(1, PARTS):
        while trainer.done < steps * part // PARTS:
            trainer.step()
        growth += [mean_loss(measure(None)) - mean_loss(measure(paths["heldout"]))] if arm.controls else []
    trainer.run()
    fetched, generic = measure(paths["heldout"]), measure(None)
    found = {
        "fetched": mean_loss(fetched),
        "generic": mean_loss(generic),
        "fetched_parameters": spec.fetch_size,
        "bank_parameters": spec.bank_size,
    }
    if not arm.controls:
        return found
    blocked, generic_N = second_best_paths(tree, bench.vectors[1])
    controls = {
        "prefix": measure(paths["prefix"]),
        "wrong": measure(wrong_paths(paths["heldout"], seed)),
        "blocked": measure(np.where(generic_N[:, None], paths["heldout"], blocked)),
        "bare": sequence_losses(model, bench.heldout.tokens_NT),
    }
    for name, retrieved in RETRIEVAL:
        targets, owner_N = bench.short(retrieved)
        controls[name] = target_losses(
            model, targets, memory, lambda n, own_N=owner_N: [state.source(paths["prefix"][own_N[n]])]
        )
    frequency = leaf_frequency(paths["train"][:, -1], paths["heldout"][:, -1])[bench.heldout.document_N]
    tail = group_by_frequency(frequency, bench.heldout.document_N, {"generic": generic, "fetched": fetched})
    grown = [*growth, found["generic"] - found["fetched"]]
    return found | {name: mean_loss(pair) for name, pair in controls.items()} | {"growth": grown, "by_frequency": tail}


def _measure(
    bench: Bench, model: PreTrainedModel, memory: Any, state: BankState
) -> Callable[[np.ndarray | None], tuple[np.ndarray, np.ndarray]]:
    """Return held-out losses with the blocks of given document paths, or with the generic block."""
    document_N, tokens_NT = bench.heldout.document_N, bench.heldout.tokens_NT

    def losses(paths_DP: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        if paths_DP is None:
            return sequence_losses(model, tokens_NT, memory, lambda _: [make_shared_source(state.spec, state.generic)])
        paths_NP = paths_DP[document_N]
        return sequence_losses(model, tokens_NT, memory, lambda numbers: [state.source(paths_NP[numbers])])

    return losses
