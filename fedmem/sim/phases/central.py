"""Phases `prepare`, `pretrain` and `cotrain`: what the coordinator does on public text (docs/method.md, §4).

Invariants
- Tokenizer and tree see the coordinator's public text only, and so does training unless the scenario pools it.
- With 0 steps, anchor and bank are the random ones that training would have started from.
- The control `anchor alone` goes on from the same pretrained anchor, with the same batches and settings.
"""

import numpy as np
from transformers import PreTrainedModel

from fedmem.anchor.presets import new_anchor
from fedmem.anchor.tokenizer import train_tokenizer
from fedmem.eval.perplexity import SourcesOf, mean, sequence_losses
from fedmem.memory.attach import Memory, attach
from fedmem.routing.router import route
from fedmem.routing.tree import train_tree
from fedmem.sim import parameters
from fedmem.sim.context import HELDOUT_SAMPLE, Simulation
from fedmem.sim.folder import Facts
from fedmem.sim.scenario import Phase
from fedmem.training.bank_state import BankState
from fedmem.training.loop import OnStep, cotrain, pretrain
from fedmem.training.packing import Packed, pack
from fedmem.training.sequences import Sequences
from fedmem.training.settings import Settings
from fedmem.vault.fs import Files, storage_errors

CURVE_POINTS = 6


def prepare(sim: Simulation) -> Facts:
    """Train the tokenizer and the cluster tree; place every device's records."""
    texts, scenario = sim.population.coordinator, sim.scenario
    sim.progress("prepare", 1, 4, "tokenizer")
    tokenizer = train_tokenizer(texts, scenario.anchor.vocabulary)
    Files().replace(sim.state("tokenizer.json"), tokenizer.to_str(pretty=True).encode())
    sim.progress("prepare", 2, 4, "cluster tree")
    tree = train_tree(
        sim.embedder.embed(texts),
        branching=scenario.bank.branching,
        levels=len(scenario.bank.widths),
        seed=sim.derive("tree") % 2**32,
    )
    with storage_errors("write the cluster tree"):
        tree.save(sim.state("tree.safetensors"))
    sim.progress("prepare", 3, 4, "placement")
    facts = placement(sim)
    sim.progress("prepare", 4, 4, "")
    return {"placement": facts, "attribution": sim.population.attribution}


def placement(sim: Simulation) -> Facts:
    """How the policy placed the records, and how often it alone agrees with what the owner declared.

    Of the user's own text the number of private records is not written down.
    """
    decisions = [decision for placed in sim.placed for decision in placed.decisions]
    declared = [(i.text, i.declared) for placed in sim.placed for i in placed.items if i.declared]
    alone = sim.policy.place_many([text for text, _ in declared])
    agreed = sum(d.placement == "private" for d in alone)
    same = sum(d.topic == topic for d, (_, topic) in zip(alone, declared, strict=True))
    private = sum(d.placement == "private" for d in decisions)
    return {
        "shared": len(decisions) - private,
        "private": private if sim.population.generated else None,
        "agreement": agreed / len(declared) if declared else None,
        "topic_agreement": same / len(declared) if declared else None,
    }


def settings(phase: Phase, weight_decay: float = 0.05) -> Settings:
    """Training settings of a central phase."""
    return Settings(phase.steps, phase.batch, phase.lr, memory_lr=phase.memory_lr, weight_decay=weight_decay)


def paths_of(sim: Simulation, texts: list[str], sequences: Sequences) -> np.ndarray:
    """Path of each sequence: that of its whole document [docs/method.md, §3]."""
    paths_NP: np.ndarray = route(sim.tree, sim.embedder.embed(texts))[sequences.document_N]
    return paths_NP


def packed_with_paths(sim: Simulation, texts: list[str]) -> tuple[Packed, np.ndarray]:
    """Texts packed by leaf cluster, and the path of each row."""
    sequences = sim.encode(texts)
    paths_NP = paths_of(sim, texts, sequences)
    packed = pack(sequences, paths_NP[:, -1])
    return packed, paths_NP[packed.first_M]


def texts_of(sim: Simulation, phase: Phase) -> list[str]:
    """What a central phase trains on: the coordinator's text, or for a comparison what all devices could share."""
    if phase.pooled:
        return [text for placed in sim.placed for text in placed.shareable()]
    return sim.population.coordinator


class Curve:
    """Held-out loss of a small fixed sample along a phase, and the phase's progress bar."""

    def __init__(self, sim: Simulation, phase: str, steps: int, model: PreTrainedModel) -> None:
        self.sim, self.phase, self.steps, self.model = sim, phase, steps, model
        texts = sim.population.heldout[:HELDOUT_SAMPLE]
        self.sequences = sim.encode(texts)
        self.paths_NP = paths_of(sim, texts, self.sequences)
        self.points: list[Facts] = []

    def on_step(self, memory: Memory | None = None, state: BankState | None = None, offset: int = 0) -> OnStep:
        """A callback that reports each step and measures every now and then, with fetched blocks if there are any."""
        every = max(1, self.steps // CURVE_POINTS)
        sources: SourcesOf | None = None
        if state is not None:
            fetched = state
            sources = lambda numbers: [fetched.source(self.paths_NP[numbers])]  # noqa: E731

        def step(number: int, _loss: float) -> None:
            self.sim.progress(self.phase, offset + number, self.steps, "")
            if number % every == 0:
                loss = mean(sequence_losses(self.model, self.sequences.tokens_NT, memory, sources))
                self.points.append({"phase": self.phase, "step": number, "loss": loss, "split": "heldout"})
                self.model.train()

        return step


def pretrain_phase(sim: Simulation) -> Facts:
    """Pretrain the anchor."""
    phase = sim.scenario.pretrain
    packed, _ = packed_with_paths(sim, texts_of(sim, phase))
    model = new_anchor(sim.scenario.anchor.preset, sim.vocabulary, sim.derive("anchor"))
    curve = Curve(sim, "pretrain", phase.steps, model)
    pretrain(model, packed, settings(phase), sim.derive("pretrain") % 2**32, curve.on_step())
    parameters.save(sim.state("pretrained.safetensors"), model)
    return {"curve": curve.points, "parameters": sum(p.numel() for p in model.parameters())}


def cotrain_phase(sim: Simulation) -> Facts:
    """Co-train anchor and bank, and the control if there is one: the anchor alone for as many tokens."""
    phase, seed = sim.scenario.cotrain, sim.derive("cotrain") % 2**32
    packed, paths_MP = packed_with_paths(sim, texts_of(sim, phase))
    model, before = new_anchor(sim.scenario.anchor.preset, sim.vocabulary, 0), _control(sim, packed, seed)
    curve = Curve(sim, "cotrain", before + phase.steps, model)
    parameters.load(sim.state("pretrained.safetensors"), model, sim.spec)
    state, memory = BankState.new(sim.spec, sim.derive("bank")), attach(model)
    cotrain(model, memory, state, packed, paths_MP, settings(phase), seed, curve.on_step(memory, state, before))
    memory.detach()
    parameters.save(sim.state("cotrained.safetensors"), model, state)
    return {"curve": curve.points}


def _control(sim: Simulation, packed: Packed, seed: int) -> int:
    """Train and save the control; returns the steps that it took."""
    if not sim.scenario.anchor.control:
        return 0
    phase, model = sim.scenario.cotrain, new_anchor(sim.scenario.anchor.preset, sim.vocabulary, 0)
    total = 2 * phase.steps
    parameters.load(sim.state("pretrained.safetensors"), model, sim.spec)
    pretrain(model, packed, settings(phase), seed, lambda step, _: sim.progress("cotrain", step, total, "control"))
    parameters.save(sim.state("control.safetensors"), model)
    return phase.steps
