"""What every phase of a run has at hand.

Invariants
- Everything here is a function of the run's inputs; a resumed run has the same.
- Private text is built in memory when a phase first asks for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer

from fedmem.anchor.presets import new_anchor
from fedmem.memory.sites import spec_for
from fedmem.memory.spec import MemorySpec
from fedmem.policy.policy import Policy
from fedmem.routing.embedder import StaticEmbedder
from fedmem.routing.tree import Tree
from fedmem.sim import population
from fedmem.sim.folder import Facts, RunFolder
from fedmem.sim.population import Placed, Population, derive_seed
from fedmem.sim.scenario import Scenario
from fedmem.training.sequences import Sequences, encode

Progress = Callable[[str, int, int, str], None]
"""`(phase, done, total, note)`."""

HELDOUT_SAMPLE = 160


@dataclass
class Simulation:
    """One run: its folder, scenario, seed, the user's corpus or None, and whom to tell about progress.

    `workers`: processes that simulated devices run in; it changes no byte, so it is no input of the run.
    """

    folder: RunFolder
    scenario: Scenario
    seed: int
    corpus: Path | None
    progress: Progress
    workers: int = 0

    def __post_init__(self) -> None:
        # One thread: how a sum of floats is split among several was seen to change under load (I9).
        torch.set_num_threads(1)

    def derive(self, *labels: object) -> int:
        """A seed for one use."""
        return derive_seed(self.seed, *labels)

    def facts(self, phase: str) -> Facts:
        """Facts of a finished phase."""
        return self.folder.facts()[phase]

    def state(self, name: str) -> Path:
        """Path of something that one phase hands to another."""
        return self.folder.state / name

    @cached_property
    def embedder(self) -> StaticEmbedder:
        return StaticEmbedder()

    @cached_property
    def policy(self) -> Policy:
        return Policy.load()

    @cached_property
    def population(self) -> Population:
        return population.build(self.scenario, self.seed, self.corpus, self.policy)

    @cached_property
    def placed(self) -> list[Placed]:
        """Every device's records with the policy's decisions."""
        return [population.place(items, self.policy, self.embedder) for items in self.population.devices]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.state("tokenizer.json")))

    @cached_property
    def tree(self) -> Tree:
        return Tree.load(self.state("tree.safetensors"))

    @property
    def spec(self) -> MemorySpec:
        """Shape of the shared bank."""
        model, bank = new_anchor(self.scenario.anchor.preset, self.vocabulary, 0), self.scenario.bank
        return spec_for(model, "ffn", bank.branching, bank.widths)

    @property
    def vocabulary(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def encode(self, texts: list[str]) -> Sequences:
        """Texts as sequences of the scenario's public length."""
        return encode(self.tokenizer, texts, self.scenario.anchor.length)
