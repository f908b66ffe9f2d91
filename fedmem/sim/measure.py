"""Measure the held-out private loss of one device and topic by the usual steps: open the vault, fetch, answer.

Invariants
- `python -m fedmem.sim.measure RUN DEVICE TOPIC` runs in a fresh process that knows the run folder only.
- Held-out text is generated again in memory. The output is one number in JSON and never contains text.
"""

import json
import sys
from collections.abc import Sequence

from fedmem.device.private_fetch import block_for, private_sources, shared_and_private
from fedmem.eval.perplexity import mean_loss, sequence_losses
from fedmem.memory.attach import attach
from fedmem.memory.kinds import ActiveMemory
from fedmem.sim.context import Simulation
from fedmem.sim.phases.central import paths_of
from fedmem.sim.phases.private import first_release, open_vault


def measure_private_loss(sim: Simulation, device: int, topic: str, *, private: bool = True) -> float:
    """Return the mean held-out loss, in nats per token, on the first release.

    Args:
        sim: the simulation.
        device: the index of the device.
        topic: the private topic.
        private: use the private block; if False, the vault stays closed.
    """
    release, texts = first_release(sim), sim.population.private_heldout[device, topic]
    sequences = sim.encode(texts)
    paths_NP, model = paths_of(sim, texts, sequences), release.anchor()
    memory = attach(model)

    def loss(private_blocks: Sequence[ActiveMemory]) -> float:
        fetch = lambda numbers: shared_and_private(release, paths_NP[numbers], private_blocks)  # noqa: E731
        return mean_loss(sequence_losses(model, sequences.tokens_NT, memory, fetch))

    if not private:
        return loss([])
    with open_vault(sim, device, write=False) as vault:  # closing it overwrites the rows
        block = block_for(vault, topic, release.digest)
        return loss(private_sources(vault, release, [block] if block else []))


def main(arguments: list[str]) -> None:
    """Print `{"loss": …}` for a run, a device and a topic.

    Args:
        arguments: the name of the run, the index of the device, and the topic.
    """
    from fedmem.sim.run import load_simulation
    from fedmem.sim.runs import find_run

    run, device, topic = arguments
    sim = load_simulation(find_run(run), progress=lambda *_: None)
    sys.stdout.write(json.dumps({"loss": measure_private_loss(sim, int(device), topic)}))


if __name__ == "__main__":
    main(sys.argv[1:])
