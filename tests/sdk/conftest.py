"""A home of its own for every test, a release that takes milliseconds, and blocks without training."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from fedmem.anchor.presets import new_anchor
from fedmem.anchor.tokenizer import train_tokenizer
from fedmem.memory.sites import spec_for
from fedmem.routing.embedder import StaticEmbedder
from fedmem.routing.tree import Tree
from fedmem.training.bank_state import BankState
from fedmem.training.release import Release
from fedmem.vault.vault import BlockInfo, Vault

TEXTS = ["The river runs to the sea.", "A singer from the north.", "An old bridge of stone.", "A small green frog."]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """FEDMEM_HOME, empty and private to the test."""
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FEDMEM_RUNS", raising=False)
    return tmp_path / "home"


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A nano anchor with random weights, two levels of two and four blocks."""
    embedder = StaticEmbedder()
    vectors_ND = embedder.embed(TEXTS)
    tree = Tree(2, 2, (vectors_ND[:2], vectors_ND))
    model = new_anchor("nano", vocab_size=300, seed=3)
    state = BankState.new(spec_for(model, "ffn", 2, (4, 2)), seed=1)
    generator = torch.Generator().manual_seed(2)
    for blocks in [*state.levels, state.generic]:
        blocks.add_(0.05 * torch.randn(blocks.shape, generator=generator))
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    return Release.write(tmp_path_factory.mktemp("releases"), model, tokenizer, tree, embedder.digest, state.stream())


@pytest.fixture
def finish_block() -> Callable[..., BlockInfo]:
    """Seal a block of given rows, charged as a real run is, without training it."""

    def finish(vault: Vault, topic: str, release: str, scale: float = 0.0) -> BlockInfo:
        ids = [record.id for record in vault.records(topic)]
        spend = {"mechanism": "poisson-gaussian/1", "sampling_rate": 0.1, "noise_multiplier": 2.0, "steps": 10}
        run = vault.begin_run(topic, release, {}, "00", ids, spend)
        rows_X = scale * torch.from_numpy(np.random.default_rng(5).normal(size=2 * 3 * 4 * 64).astype(np.float32))
        return vault.finish_run(run, topic, release, save({"rows": rows_X}), 2, 4, 64)

    return finish
