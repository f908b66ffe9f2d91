"""A simulation derives everything from its inputs."""

from dataclasses import replace

from fedmem.sim.context import Simulation
from fedmem.sim.folder import RunFolder


def test_seeds_are_independent_by_use_and_follow_from_the_seed_of_the_run(started: Simulation) -> None:
    uses = [("anchor",), ("bank",), ("bank", 1), ("bank", "1", ""), ("bank/1",)]
    seeds = [started.derive(*use) for use in uses]
    assert len(set(seeds)) == len(uses)
    assert seeds == [replace(started).derive(*use) for use in uses]
    assert not set(seeds) & {replace(started, seed=8).derive(*use) for use in uses}


def test_another_process_builds_the_same_text_and_places_it_alike(started: Simulation) -> None:
    other = Simulation(RunFolder(started.folder.root), started.scenario, started.seed, None, lambda *_: None)
    assert other.population == started.population
    assert [placed.shareable() for placed in other.placed] == [placed.shareable() for placed in started.placed]


def test_a_device_shares_its_public_documents_and_none_of_its_private_records(started: Simulation) -> None:
    for placed in started.placed:
        assert placed.shareable()
        assert not set(placed.shareable()) & {item.text for item in placed.items if item.declared}


def test_sequences_have_the_public_length(started: Simulation) -> None:
    tokens = started.encode(["word " * 500, "short"]).tokens_NT
    assert tokens.shape[1] <= started.scenario.anchor.length
    assert len(tokens) > 2


def test_the_shape_of_the_bank_is_that_of_the_scenario(started: Simulation) -> None:
    assert (started.spec.branching, started.spec.levels) == (2, 3)
    assert started.vocabulary == started.scenario.anchor.vocabulary


def test_facts_and_files_lie_in_the_folder_of_the_run(started: Simulation) -> None:
    assert started.facts("rounds_1")["release"] in {path.name for path in started.folder.releases.iterdir()}
    assert started.state("tokenizer.json").exists()
