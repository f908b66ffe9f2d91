"""Hold the inputs of a run, and what every phase derives from them.

Invariants
- Everything here is a function of the run's inputs, so a resumed run has the same values.
- Private text is built in memory when a phase first needs it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer

from fedmem.anchor.presets import new_anchor
from fedmem.anchor.tokenizer import load_tokenizer
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
"""A callback that is called as `(phase, done, total, note)`."""

HELDOUT_SAMPLE = 160
"""The number of held-out texts on which a loss is measured during training."""


@dataclass
class Simulation:
    """One run.

    Attributes:
        folder: the folder of the run.
        scenario: its scenario.
        seed: its seed.
        corpus: the user's own text; None for the scenario's sources.
        progress: called as `Progress` says.
        workers: the number of processes that simulated devices run in. It changes no byte of the results, so it is not
            one of the run's inputs.
    """

    folder: RunFolder
    scenario: Scenario
    seed: int
    corpus: Path | None
    progress: Progress
    workers: int = 0

    def __post_init__(self) -> None:
        # One thread: several threads were seen to split a sum of floats differently under load (I9).
        torch.set_num_threads(1)

    def derive(self, *labels: object) -> int:
        """Return a seed for one use.

        Args:
            labels: the use; different labels give independent seeds.

        Returns:
            63 bits.
        """
        return derive_seed(self.seed, *labels)

    def facts(self, phase: str) -> Facts:
        """Return the facts of a finished phase.

        Args:
            phase: the name of the phase.
        """
        return self.folder.facts()[phase]

    def state(self, name: str) -> Path:
        """Return the path of a file that one phase leaves for another.

        Args:
            name: the name of the file.
        """
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
        """The records of every device with the policy's decisions."""
        return [population.place(items, self.policy, self.embedder) for items in self.population.devices]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.state("tokenizer.json"))

    @cached_property
    def tree(self) -> Tree:
        return Tree.load(self.state("tree.safetensors"))

    @property
    def spec(self) -> MemorySpec:
        """The shape of the shared bank."""
        model, bank = new_anchor(self.scenario.anchor.preset, self.vocabulary, 0), self.scenario.bank
        return spec_for(model, "ffn", bank.branching, bank.widths)

    @property
    def vocabulary(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def encode(self, texts: list[str]) -> Sequences:
        """Return texts as token sequences of the scenario's public length.

        Args:
            texts: the texts.
        """
        return encode(self.tokenizer, texts, self.scenario.anchor.length)
