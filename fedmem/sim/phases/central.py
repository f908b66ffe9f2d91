"""Execute the phases `prepare`, `pretrain` and `cotrain`: the coordinator's work on public text (docs/method.md, §4).

Invariants
- Tokenizer and tree see the coordinator's public text only. So does training, unless the scenario pools the text.
- With 0 steps, anchor and bank are the random ones from which training would have started.
- The control `anchor alone` continues from the same pretrained anchor, with the same batches and settings.
"""

import numpy as np
from transformers import PreTrainedModel

from fedmem.anchor.presets import new_anchor
from fedmem.anchor.tokenizer import train_tokenizer
from fedmem.eval.perplexity import SourcesOf, mean_loss, sequence_losses
from fedmem.memory.attach import Memory, attach
from fedmem.routing.router import route
from fedmem.routing.tree import train_tree
from fedmem.sim import parameters
from fedmem.sim.context import HELDOUT_SAMPLE, Simulation
from fedmem.sim.folder import Facts
from fedmem.sim.scenario import Phase
from fedmem.storage.files import Files, storage_errors
from fedmem.training.bank_state import BankState
from fedmem.training.loop import OnStep, cotrain, pretrain
from fedmem.training.packing import Packed, pack
from fedmem.training.sequences import Sequences
from fedmem.training.settings import Settings

CURVE_POINTS = 6
"""The number of measurements of held-out loss in a phase, or a few more."""


def prepare_phase(sim: Simulation) -> Facts:
    """Train the tokenizer and the cluster tree, and place every device's records.

    Args:
        sim: the simulation.

    Returns:
        `placement` as `count_placements` returns it, and the `attribution` of the text.
    """
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
    facts = count_placements(sim)
    sim.progress("prepare", 4, 4, "")
    return {"placement": facts, "attribution": sim.population.attribution}


def count_placements(sim: Simulation) -> Facts:
    """Return how many records were shared and private, and how often policy and owner agree.

    Agreement is measured on records whose owner declared a topic, with the policy's decision without that declaration.
    Of the user's own text the number of private records is not written down.

    Args:
        sim: the simulation.

    Returns:
        The counts `shared` and `private`, and the shares `agreement` and `topic_agreement`, 0 to 1. A figure that is
        not measured is None.
    """
    decisions = [decision for placed in sim.placed for decision in placed.decisions]
    declared = [(i.text, i.declared) for placed in sim.placed for i in placed.items if i.declared]
    undeclared_decisions = sim.policy.place_many([text for text, _ in declared])
    agreements = sum(d.placement == "private" for d in undeclared_decisions)
    topic_agreements = sum(d.topic == topic for d, (_, topic) in zip(undeclared_decisions, declared, strict=True))
    private = sum(d.placement == "private" for d in decisions)
    return {
        "shared": len(decisions) - private,
        "private": private if sim.population.generated else None,
        "agreement": agreements / len(declared) if declared else None,
        "topic_agreement": topic_agreements / len(declared) if declared else None,
    }


def training_settings(phase: Phase, weight_decay: float = 0.05) -> Settings:
    """Return the training settings of a central phase.

    Args:
        phase: the scenario's settings of the phase.
        weight_decay: the weight decay of AdamW.
    """
    return Settings(phase.steps, phase.batch, phase.lr, memory_lr=phase.memory_lr, weight_decay=weight_decay)


def paths_of(sim: Simulation, texts: list[str], sequences: Sequences) -> np.ndarray:
    """Return the path of each sequence, which is that of its whole document (docs/method.md, §3).

    Args:
        sim: the simulation.
        texts: the documents.
        sequences: the sequences of these documents.

    Returns:
        Cluster ids from 0, of shape (sequences, levels).
    """
    paths_NP: np.ndarray = route(sim.tree, sim.embedder.embed(texts))[sequences.document_N]
    return paths_NP


def pack_with_paths(sim: Simulation, texts: list[str]) -> tuple[Packed, np.ndarray]:
    """Pack texts by leaf cluster.

    Args:
        sim: the simulation; its tree and tokenizer exist.
        texts: the documents.

    Returns:
        The packed rows, and the path of each row, of shape (rows, levels).
    """
    sequences = sim.encode(texts)
    paths_NP = paths_of(sim, texts, sequences)
    packed = pack(sequences, paths_NP[:, -1])
    return packed, paths_NP[packed.first_M]


def training_texts(sim: Simulation, phase: Phase) -> list[str]:
    """Return the texts that a central phase trains on.

    These are the coordinator's texts, or in a pooled phase the shareable texts of all devices.

    Args:
        sim: the simulation.
        phase: the scenario's settings of the phase.
    """
    if phase.pooled:
        return [text for placed in sim.placed for text in placed.shareable()]
    return sim.population.coordinator


class Curve:
    """The held-out loss of a small fixed sample during a phase, and the phase's progress.

    Args:
        sim: the simulation.
        phase: the name of the phase.
        steps: the number of its steps, for progress and intervals.
        model: the anchor that is trained.
    """

    def __init__(self, sim: Simulation, phase: str, steps: int, model: PreTrainedModel) -> None:
        self.sim, self.phase, self.steps, self.model = sim, phase, steps, model
        texts = sim.population.heldout[:HELDOUT_SAMPLE]
        self.sequences = sim.encode(texts)
        self.paths_NP = paths_of(sim, texts, self.sequences)
        self.points: list[Facts] = []

    def on_step(self, memory: Memory | None = None, state: BankState | None = None, offset: int = 0) -> OnStep:
        """Return a callback that reports each step and measures the loss at intervals.

        Args:
            memory: the attached memory, if the model has one.
            state: the bank whose blocks are fetched for the measurement; None to measure the model alone.
            offset: the number of steps that were done before, for the progress report.
        """
        interval = max(1, self.steps // CURVE_POINTS)
        sources: SourcesOf | None = None
        if state is not None:
            bank = state
            sources = lambda numbers: [bank.source(self.paths_NP[numbers])]  # noqa: E731

        def step(number: int, _loss: float) -> None:
            self.sim.progress(self.phase, offset + number, self.steps, "")
            if number % interval == 0:
                loss = mean_loss(sequence_losses(self.model, self.sequences.tokens_NT, memory, sources))
                self.points.append({"phase": self.phase, "step": number, "loss": loss, "split": "heldout"})
                self.model.train()

        return step


def pretrain_phase(sim: Simulation) -> Facts:
    """Pretrain the anchor.

    Args:
        sim: the simulation.

    Returns:
        `curve` and the number of the anchor's `parameters`.
    """
    phase = sim.scenario.pretrain
    packed, _ = pack_with_paths(sim, training_texts(sim, phase))
    model = new_anchor(sim.scenario.anchor.preset, sim.vocabulary, sim.derive("anchor"))
    curve = Curve(sim, "pretrain", phase.steps, model)
    pretrain(model, packed, training_settings(phase), sim.derive("pretrain") % 2**32, curve.on_step())
    parameters.save(sim.state("pretrained.safetensors"), model)
    return {"curve": curve.points, "parameters": sum(p.numel() for p in model.parameters())}


def cotrain_phase(sim: Simulation) -> Facts:
    """Co-train anchor and bank, and the control if the scenario has one: the anchor alone, for as many tokens.

    Args:
        sim: the simulation.

    Returns:
        `curve`.
    """
    phase, seed = sim.scenario.cotrain, sim.derive("cotrain") % 2**32
    packed, paths_MP = pack_with_paths(sim, training_texts(sim, phase))
    model, control_steps = new_anchor(sim.scenario.anchor.preset, sim.vocabulary, 0), _train_control(sim, packed, seed)
    curve = Curve(sim, "cotrain", control_steps + phase.steps, model)
    parameters.load(sim.state("pretrained.safetensors"), model, sim.spec)
    state, memory = BankState.new(sim.spec, sim.derive("bank")), attach(model)
    cotrain(
        model,
        memory,
        state,
        packed,
        paths_MP,
        training_settings(phase),
        seed,
        curve.on_step(memory, state, control_steps),
    )
    memory.detach()
    parameters.save(sim.state("cotrained.safetensors"), model, state)
    return {"curve": curve.points}


def _train_control(sim: Simulation, packed: Packed, seed: int) -> int:
    """Train and save the control, and return the number of its steps."""
    if not sim.scenario.anchor.control:
        return 0
    phase, model = sim.scenario.cotrain, new_anchor(sim.scenario.anchor.preset, sim.vocabulary, 0)
    total = 2 * phase.steps
    parameters.load(sim.state("pretrained.safetensors"), model, sim.spec)
    pretrain(
        model, packed, training_settings(phase), seed, lambda step, _: sim.progress("cotrain", step, total, "control")
    )
    parameters.save(sim.state("control.safetensors"), model)
    return phase.steps
