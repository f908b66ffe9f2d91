"""I1 from its definition: whatever is private on the devices, and whatever is done with it, the same bytes leave.

Runs differ in their private records only (none, one, many), with learning, search, a failing run, a spent budget and
an erasure before and between rounds. Compared is the SHA-256 over everything handed to Flower, on each backend: in one
process, with workers, and on Flower's simulation engine.
"""

import copy
import dataclasses
import os
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from fedmem import erasure
from fedmem.coordinator.journal import Journal
from fedmem.device.learning import learn_topic
from fedmem.errors import BudgetExceeded, Refused
from fedmem.sim import scenario
from fedmem.sim.context import Simulation
from fedmem.sim.folder import RunFolder
from fedmem.sim.phases import central, federated, private
from fedmem.sim.phases.private import first_release, open_vault
from fedmem.vault.vault import NewRecord, Vault

MINI, ROOT = Path(__file__).with_name("mini.toml"), Path(__file__).resolve().parents[2]


def topic(name, records, devices=(0,)):
    return scenario.Private(name, list(devices), records, 4)


PRIVATE = {
    "none": [],
    "one": [topic("notes", 1)],
    "many": [topic("finance", 30, (0, 1, 2)), topic("notes", 12)],
}


def start(folder, topics):
    """A simulation of the mini scenario with other private topics, up to the end of its first release."""
    chosen = structs.replace(scenario.load(str(MINI)), private=topics)
    sim = Simulation(RunFolder(folder), chosen, 7, None, lambda *_: None)
    sim.folder.create({"id": "0", "scenario": chosen.to_dict(), "seed": 7, "corpus": None})
    phases = {"prepare": central.prepare_phase, "pretrain": central.pretrain_phase, "cotrain": central.cotrain_phase}
    for name, work in phases.items():
        sim.folder.finish_phase(name, work(sim))
    if topics:
        everything_private_before_the_rounds(sim)
    sim.folder.finish_phase("rounds_1", federated.make_rounds_phase(1)(sim))
    return sim


@pytest.fixture(scope="module")
def started(home, tmp_path_factory):
    """Copies of a simulation with the named private records, its first release out; each may go on by itself."""
    made, numbers = {}, count()

    def get(name, workers=0):
        if name not in made:
            made[name] = start(tmp_path_factory.mktemp(name) / "run", PRIVATE[name])
        twin = copy.copy(made[name])
        twin.folder, twin.workers = RunFolder(made[name].folder.root.with_name(f"run-{next(numbers)}")), workers
        shutil.copytree(made[name].folder.root, twin.folder.root)
        return twin

    return get


def everything_private_before_the_rounds(sim):
    """The same as between the rounds, in a vault of its own, on the release that the coordinator trained."""
    release = federated._release(sim, federated.load_arm(sim, "memory"))
    text, topic = next((item.text, item.declared) for item in sim.population.devices[0] if item.declared)
    record = NewRecord(text, topic, (0, 0, 0), sim.embedder.embed([text])[0], release.digest)
    with Vault.create(sim.folder.root / "before", subject="before", simulated=True) as vault:
        vault.add_records([record])
        plan = private.privacy_plan(sim, sim.policy.topics[topic])
        learn_topic(vault, release, sim.policy.topics[topic], plan, run_key=bytes(32))
        misuse(sim, vault, release, topic)


def everything_private(sim):
    """Learn, search, fail, spend the budget, and erase."""
    if sim.scenario.private:
        sim.folder.finish_phase("private", private.private_phase(sim))
        with open_vault(sim, 0) as vault:
            misuse(sim, vault, first_release(sim), sim.population.learned[0][1])


def misuse(sim, vault, release, topic):
    """Search, a failing run, a spent budget, an erasure."""
    known = sim.policy.topics[topic]
    assert vault.search(np.ones(128, np.float32), 3)
    with pytest.raises(Refused):
        learn_topic(vault, release, dataclasses.replace(known, delta=1e-9), private.privacy_plan(sim, known))
    with pytest.raises(BudgetExceeded):
        learn_topic(vault, release, known, private.privacy_plan(sim, known))
    planned = erasure.plan(vault, erasure.Scope.block(topic))
    erasure.execute(vault, planned, planned.digest)


def sent(sim):
    """Finish the rounds; digest of all messages, and bytes and counts per round."""
    facts = federated.make_rounds_phase(2)(sim)
    return facts["wire"], facts["traffic"]


def test_what_leaves_does_not_depend_on_private_records(started):
    wanted = sent(started("none"))
    assert sent(started("none", workers=2)) == wanted
    for name, workers in (("one", 0), ("many", 2)):
        sim = started(name, workers)
        everything_private(sim)
        assert sent(sim) == wanted


def test_the_comparison_sees_other_shareable_records(started):
    first, second = started("none"), started("none")
    # The negative control: one shareable record more on one device.
    for name in ("population", "placed"):
        vars(second).pop(name, None)
    items = second.population.devices[0]
    items.append(dataclasses.replace(items[0], text="The river Aare flows through Bern and joins the Rhine."))
    assert sent(first)[0] != sent(second)[0]


def sent_on_ray(sim):
    """Two rounds from the first release on Flower's engine, with the private life of the devices between them."""
    out = sim.folder.root.with_name(f"{sim.folder.name}-ray")
    out.mkdir()
    code, release = "from tests.e2e.ray_fleet import main; main()", sim.folder.releases / first_release(sim).digest
    command = [sys.executable, "-c", code, str(release), "3", "2", str(out)]
    with (out / "errors").open("w") as errors:
        process = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
    try:
        said = process.stdout.readline()
        assert said == "closed 1\n", (out / "errors").read_text()
        everything_private(sim)
        process.communicate("\n", timeout=600)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, (out / "errors").read_text()
    return Journal(out / "journal").wire_digest(), [vars(row) for row in Journal(out / "journal").traffic()]


@pytest.mark.slow
def test_what_leaves_on_flowers_engine_does_not_depend_on_private_records(started):
    wanted = sent_on_ray(started("none"))
    assert [row["counted"] for row in wanted[1]] == [3, 3]
    assert sent_on_ray(started("one")) == wanted
    assert sent_on_ray(started("many")) == wanted
