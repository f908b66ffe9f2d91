"""A bank is described, and a release whose parts do not fit is refused with their names."""

import pytest

from fedmem.anchor.presets import new_anchor
from fedmem.coordinator.bank_training import train_bank
from fedmem.coordinator.examine import describe_bank, verify_release
from fedmem.errors import (
    NothingMatched,
    VerificationFailed,
)
from fedmem.memory.sites import spec_for
from fedmem.routing.tree import Tree
from fedmem.training.bank_state import BankState
from fedmem.training.release import Release
from fedmem.training.state import Watch
from tests.coordinator.workplace import CORPUS, EMBEDDER, copy, plan


def train(release, folder, how, watch=None, **extra):
    return train_bank(CORPUS, release.root, folder, how, EMBEDDER, watch or Watch(), **extra)


def test_a_bank_is_described(anchor, release):
    facts = describe_bank(release.root)
    assert (facts.kind, facts.branching, facts.anchor) == ("ffn", 3, "LlamaForCausalLM")
    assert [(one.blocks, one.widths) for one in facts.levels] == [(3, (4, 4)), (9, (2, 2))]
    assert facts.fetched_values == 6 * 2 * 3 * 64
    assert facts.values == (3 * 4 + 9 * 2) * 2 * 3 * 64
    assert facts.anchor_parameters == anchor[1]["parameters"]
    assert facts.share == pytest.approx(facts.fetched_values / facts.anchor_parameters)


def test_a_changed_file_does_not_verify(release, tmp_path):
    folder = copy(release.root, tmp_path)
    path = next((folder / "bank").glob("level-2*"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(VerificationFailed, match="was changed"):
        verify_release(folder)


@pytest.mark.parametrize(
    ("preset", "kind", "branching", "levels", "vocabulary", "fault"),
    [
        ("tiny", "ffn", 3, 2, 300, "another geometry"),
        ("nano", "ffn", 2, 2, 300, "branching or depth"),
        ("nano", "ffn", 3, 1, 300, "branching or depth"),
        ("nano", "ffn", 3, 2, 290, "more entries"),
    ],
)
def test_parts_that_do_not_fit_do_not_verify(release, tmp_path, preset, kind, branching, levels, vocabulary, fault):
    # A release written with a right manifest over parts that never belonged together.
    model = new_anchor("nano", vocabulary, 1)
    spec = spec_for(new_anchor(preset, vocabulary, 1), kind, branching, (2,) * levels)
    tree = Tree(release.tree.branching, release.tree.levels, release.tree.centroids)
    state = BankState.new(spec, 1)
    made = Release.write(tmp_path, model, release.tokenizer, tree, EMBEDDER.digest, state.stream())
    with pytest.raises(VerificationFailed, match=fault):
        verify_release(made.root)
    with pytest.raises(VerificationFailed, match=fault):
        train(made, tmp_path / "out", plan("frozen"))


def test_where_there_is_no_release(tmp_path):
    with pytest.raises(NothingMatched, match="holds no release"):
        verify_release(tmp_path)
