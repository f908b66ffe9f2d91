"""Execute the phase `evaluate`: held-out loss of public text on the last release, of private text on the first.

Invariants
- `anchor` is the control, trained on as many tokens as anchor and bank. It takes part in the rounds only where it is an
  arm of the federation (`federated.arm_names`). A scenario without a control has no such figure and no gain over it.
- `generic`, `fetched` and `wrong` share one anchor.
- A wrong block belongs to another level-1 cluster.
- The frequency of a document is the number of the coordinator's documents in its leaf cluster.
"""

import numpy as np

from fedmem.eval.buckets import Losses, group_by_frequency, leaf_frequency
from fedmem.eval.controls import wrong_paths
from fedmem.eval.perplexity import mean_loss, sequence_losses
from fedmem.memory.block import make_shared_source
from fedmem.routing.router import prefix, route
from fedmem.sim.context import Simulation
from fedmem.sim.folder import Facts, subject_of
from fedmem.sim.measure import measure_private_loss
from fedmem.sim.phases.central import paths_of
from fedmem.sim.phases.federated import load_arm, load_arm_at
from fedmem.training.local import Federated
from fedmem.training.release import Release

PREFIX = 24
"""The number of words at the beginning of a text that `fetched_by_prefix` is routed by."""


def evaluate_phase(sim: Simulation) -> Facts:
    """Measure every loss of the report except the one after the erasure.

    Args:
        sim: the simulation.

    Returns:
        `loss` and `rounds` of public text, `by_frequency`, and a row of `private_blocks` for each block of generated
        text.
    """
    # Exact losses on the user's private text would leave the boundary, so they are not computed (docs/design.md, §7).
    learned, facts = sim.population.learned if sim.population.generated else [], _public_losses(sim)
    rows = list[Facts]()
    for number, (device, topic) in enumerate(learned):
        sim.progress("evaluate", number + 1, len(learned) + 1, f"{subject_of(device)} {topic}")
        without, with_block = (measure_private_loss(sim, device, topic, private=private) for private in (False, True))
        rows.append({"device": subject_of(device), "topic": topic, "without": without, "with": with_block})
    sim.progress("evaluate", len(learned) + 1, len(learned) + 1, "")
    return facts | {"private_blocks": rows}


def _public_losses(sim: Simulation) -> Facts:
    texts, rounds = sim.population.heldout, sim.scenario.federation.rounds * sim.scenario.federation.releases
    sequences = sim.encode(texts)
    tokens_NT, paths_NP = sequences.tokens_NT, paths_of(sim, texts, sequences)
    start = load_arm(sim, "memory")
    release = Release.load(sim.folder.releases / sim.facts(f"rounds_{sim.scenario.federation.releases}")["release"])
    end = Federated(release.anchor(), release.bank_state(), [])
    prefix_NP = paths_of(sim, [prefix(text, PREFIX) for text in texts], sequences)
    wrong_NP = wrong_paths(paths_NP, sim.derive("wrong"))
    train_DP = route(sim.tree, sim.embedder.embed(sim.population.coordinator))

    def fetched(part: Federated, routed_NP: np.ndarray) -> Losses:
        return sequence_losses(part.model, tokens_NT, part.memory, lambda n: part.sources(routed_NP[n]))

    generic = [make_shared_source(release.spec, release.bank.generic())]
    control = sim.scenario.anchor.control
    arms = {"anchor": sequence_losses(load_arm_at(sim, "control", rounds).model, tokens_NT)} if control else {}
    arms |= {
        "generic": sequence_losses(end.model, tokens_NT, end.memory, lambda _: generic),
        "fetched": fetched(end, paths_NP),
        "fetched_by_prefix": fetched(end, prefix_NP),
        "wrong": fetched(end, wrong_NP),
    }
    return {
        "loss": {name: mean_loss(losses) for name, losses in arms.items()},
        "rounds": _change_by_rounds(mean_loss(fetched(start, paths_NP)), mean_loss(arms["fetched"])) if rounds else {},
        "by_frequency": group_by_frequency(
            leaf_frequency(train_DP[:, -1], paths_NP[:, -1]),
            sequences.document_N,
            {name: arms[name] for name in ("anchor", "fetched")},
        )
        if control
        else [],
    }


def _change_by_rounds(before: float, after: float) -> Facts:
    """Return the loss before the rounds, the loss after them, and the change; a negative change is an improvement."""
    return {"before": before, "after": after, "change": after - before}
