"""Independent jobs: any order, place and process merges to the same bytes; each is what training its blocks means."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmem.coordinator.bank_training import train_bank
from fedmem.coordinator.examine import verify_release
from fedmem.coordinator.subtrees import SubtreeTraining, job_names, run_job, subtree_name
from fedmem.errors import NothingMatched, UsageError, VerificationFailed, VersionMismatch
from fedmem.memory.attach import attach
from fedmem.routing.router import route
from fedmem.training.bank_state import BankState
from fedmem.training.lazy_adamw import LazyAdamW
from fedmem.training.loop import BankTrainer, Trainer
from fedmem.training.packed_dataset import Rows, routed_rows
from fedmem.training.seeds import derive_seed
from fedmem.training.settings import TrainedParts
from fedmem.training.state import Watch
from tests.coordinator.workplace import CORPUS, EMBEDDER, SETTINGS, Cut, contents, cut_at, plan

FROZEN = plan("frozen")


def train(release, folder, how=FROZEN, watch=None, **extra):
    return train_bank(CORPUS, release.root, folder, how, EMBEDDER, watch or Watch(), **extra)


@pytest.fixture(scope="module")
def whole(release, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(release, folder)


def rows_of(release, texts):
    return routed_rows(release.tokenizer, texts, 48, lambda t: route(release.tree, EMBEDDER.embed(t)))


def test_the_anchor_stays_and_every_trained_subtree_helps(release, whole):
    folder, facts = whole
    new = verify_release(folder / "releases" / facts["release"])
    assert all(map(torch.equal, release.anchor().parameters(), new.anchor().parameters()))
    phases = list(dict.fromkeys(point["phase"] for point in facts["curve"]))
    assert phases == job_names(release.spec)
    held = [p["loss"] for p in facts["curve"] if (p["phase"], p["split"]) == ("generic", "heldout")]
    assert held[-1] < held[0]


def test_jobs_in_other_places_and_another_order_merge_to_the_same_bytes(release, whole, tmp_path):
    places = [tmp_path / "a", tmp_path / "b", tmp_path / "all"]
    told = train(release, places[0], subtrees=[2])
    assert (told["done"], told["missing"]) == (["subtree-2"], ["subtree-0", "subtree-1", "generic"])
    train(release, places[1], subtrees=[1, 0])
    assert not (places[0] / "releases").exists()
    (places[2] / "parts").mkdir(parents=True)
    for place in places[:2]:
        for path in (place / "parts").iterdir():
            shutil.copy(path, places[2] / "parts")
    facts = train(release, places[2])
    assert facts["curve"] == [
        point for name in job_names(release.spec) for point in whole[1]["curve"] if point["phase"] == name
    ]
    assert contents(places[2] / "releases") == contents(whole[0] / "releases")
    weights = [{path.name: path.read_bytes() for path in (p / "parts").glob("*.safetensors")} for p in places]
    assert weights[2].items() >= (weights[0] | weights[1]).items()


def test_another_process_makes_the_same_part(release, whole, tmp_path):
    code = (
        "from pathlib import Path; import sys\n"
        "from fedmem.coordinator.bank_training import train_bank\n"
        "from fedmem.training.state import Watch\n"
        "from tests.coordinator.workplace import CORPUS, EMBEDDER, plan\n"
        "train_bank(CORPUS, Path(sys.argv[1]), Path(sys.argv[2]), plan('frozen'), EMBEDDER, Watch(), [1])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(release.root), str(tmp_path)], check=True)
    part = "parts/subtree-1.safetensors"
    assert (tmp_path / part).read_bytes() == (whole[0] / part).read_bytes()


@pytest.mark.parametrize("at", [2, 6, 12])
def test_a_cut_run_goes_on_to_the_same_bytes(release, whole, tmp_path, at):
    with pytest.raises(Cut):
        train(release, tmp_path, watch=Watch(cut_at(at)))
    assert train(release, tmp_path)["release"] == whole[1]["release"]
    assert contents(tmp_path / "releases") == contents(whole[0] / "releases")


def test_a_job_is_the_training_of_its_rows_in_the_whole_bank(release, whole):
    """Oracle: the whole bank in memory, all its ids as they are, with the subtree's rows alone."""
    rows = rows_of(release, CORPUS.train)
    new = verify_release(whole[0] / "releases" / whole[1]["release"]).bank_state()
    for subtree in range(3):
        mine = rows.select(rows.paths_MP[:, 0] == subtree)
        state, model = release.bank_state(), release.anchor()
        steps = max(1, round(SETTINGS.steps * len(mine) / len(rows)))
        settings = replace(SETTINGS, steps=steps)
        levels = [LazyAdamW(blocks) for blocks in state.levels]
        moved = TrainedParts(False, frozenset({1, 2}), False)
        bank = BankTrainer(attach(model), state.spec, levels, LazyAdamW(state.generic[None]), mine.paths_MP, settings, moved)  # fmt: skip # noqa: E501
        Trainer(model, mine.packed, settings, derive_seed(FROZEN.seed, subtree_name(subtree)), bank, anchor=False).run()
        for level, (expected, found) in enumerate(zip(state.levels, new.levels, strict=True)):
            own = slice(subtree * 3**level, (subtree + 1) * 3**level)
            assert torch.equal(expected[own].bfloat16().float(), found[own])
            assert not torch.equal(found[own], release.bank_state().levels[level][own])


def test_the_generic_job_is_a_training_where_it_always_stands_in(release, whole):
    """Oracle: one batch after the other, the generic block in every item, a gradient for it alone."""
    rows, state, model = rows_of(release, CORPUS.train), release.bank_state(), release.anchor()
    settings = replace(SETTINGS, steps=round(SETTINGS.steps / 3))

    class Always(BankTrainer):
        def fetch(self, chosen_B, rng, device):
            return self.leaf(self.paths[chosen_B], torch.ones(len(chosen_B), dtype=torch.bool), device)

    levels, generic = [LazyAdamW(blocks) for blocks in state.levels], LazyAdamW(state.generic[None])
    bank = Always(attach(model), state.spec, levels, generic, rows.paths_MP, settings, TrainedParts(False, frozenset()))
    Trainer(model, rows.packed, settings, derive_seed(FROZEN.seed, "generic"), bank, anchor=False).run()
    new = verify_release(whole[0] / "releases" / whole[1]["release"]).bank_state()
    assert torch.allclose(generic.blocks[0], new.generic, atol=1e-3, rtol=1e-2)
    assert not torch.equal(new.generic, release.bank_state().generic)


def test_posthoc_is_the_same_training_under_another_name(release, whole, tmp_path):
    assert train(release, tmp_path, plan("posthoc"))["release"] == whole[1]["release"]


def test_a_subtree_without_rows_keeps_its_blocks(release, tmp_path):
    rows = rows_of(release, CORPUS.train)
    some = rows.select(rows.paths_MP[:, 0] != 1)
    training = SubtreeTraining(release, some, some, SETTINGS, 3, tmp_path, "inputs")
    run_job(training, "subtree-1", Watch())
    about = json.loads((tmp_path / "parts" / "subtree-1.json").read_text())
    assert (about["steps"], about["curve"]) == (0, [])
    from fedmem.coordinator.subtrees import read_part

    before: BankState = release.bank_state()
    for level, blocks in enumerate(read_part(training, "subtree-1")):
        assert torch.equal(blocks, before.levels[level][3**level : 2 * 3**level])


def test_steps_are_shared_by_rows(release, whole):
    rows = rows_of(release, CORPUS.train)
    assert isinstance(rows, Rows)
    counts = np.bincount(rows.paths_MP[:, 0], minlength=3)
    for subtree in range(3):
        about = json.loads((whole[0] / "parts" / f"subtree-{subtree}.json").read_text())
        assert about["steps"] == max(1, round(SETTINGS.steps * counts[subtree] / len(rows)))


def test_a_job_that_does_not_exist(release, tmp_path):
    with pytest.raises(UsageError, match="0 to 2"):
        train(release, tmp_path, subtrees=[3])


def test_a_damaged_part_and_one_of_another_training_are_refused(release, whole, tmp_path):
    part = tmp_path / "parts" / "subtree-0.safetensors"
    train(release, tmp_path, subtrees=[0])
    data = part.read_bytes()
    for bad in (data[:-1] + bytes([data[-1] ^ 1]), data[:-7], b""):
        part.write_bytes(bad)
        with pytest.raises(VerificationFailed, match="run again"):
            train(release, tmp_path)
    train(release, tmp_path / "other", plan("frozen", seed=4), subtrees=[0])
    shutil.copy(tmp_path / "other" / "parts" / "subtree-0.safetensors", part)
    with pytest.raises(VersionMismatch, match="other inputs"):
        train(release, tmp_path)
    shutil.copy(whole[0] / "parts" / "subtree-1.safetensors", part)
    with pytest.raises(VersionMismatch, match="other inputs"):
        train(release, tmp_path)
    part.unlink()
    assert train(release, tmp_path)["release"] == whole[1]["release"]


def test_a_part_without_its_record_is_told(release, tmp_path):
    train(release, tmp_path, subtrees=[0])
    (tmp_path / "parts" / "subtree-0.json").unlink()
    with pytest.raises(NothingMatched, match=r"subtree-0\.json"):
        train(release, tmp_path)
