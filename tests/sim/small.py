"""A simulation of milliseconds: 90 documents, three devices, no central step, and one round of one local step."""

from pathlib import Path

from fedmem.sim import scenario
from fedmem.sim.context import Simulation
from fedmem.sim.folder import RunFolder
from fedmem.sim.run import phases_of
from fedmem.sim.scenario import Scenario

MINI = Path(__file__).parents[1] / "e2e" / "mini.toml"


def small_scenario(**federation: object) -> Scenario:
    """Return the scenario; keywords change its federation."""
    data = scenario.load(str(MINI)).to_dict()
    data["public"]["documents"] = 90
    data["anchor"]["vocabulary"] = 300
    for private in data["private"]:
        private.update(records=8, heldout=3)
    data["pretrain"]["steps"] = data["cotrain"]["steps"] = 0
    data["federation"] |= {"rounds": 1, "releases": 1, "steps": 1} | federation
    data["learning"]["steps"] = 2
    return scenario.from_dict(data)


def start(root: Path) -> Simulation:
    """Execute the phases up to the first release."""
    chosen, folder = small_scenario(), RunFolder(root)
    folder.create({"id": "5eed", "scenario": chosen.to_dict(), "seed": 7, "corpus": None})
    sim = Simulation(folder, chosen, 7, None, lambda *_: None)
    for name in ("prepare", "pretrain", "cotrain", "rounds_1"):
        folder.finish_phase(name, phases_of(chosen)[name](sim) | {"seconds": 1.0})
    return sim
