"""The private loss is measured with or without the vault, and its process prints one number."""

import contextlib
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedmem.memory.block import make_shared_source
from fedmem.sim import measure
from fedmem.sim.context import Simulation
from fedmem.sim.phases.private import first_release


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A vault that counts its openings, and holds the block in `block`."""
    state = SimpleNamespace(openings=[], block=None)

    @contextlib.contextmanager
    def open_vault(sim: Simulation, device: int, write: bool) -> Iterator[None]:
        state.openings.append((device, write))
        yield None

    monkeypatch.setattr(measure, "open_vault", open_vault)
    monkeypatch.setattr(measure, "block_for", lambda vault, topic, release: state.block)
    monkeypatch.setattr(measure, "private_sources", lambda vault, release, blocks: blocks)
    return state


def test_without_the_block_the_vault_stays_closed(started: Simulation, vault: SimpleNamespace) -> None:
    loss = measure.measure_private_loss(started, 0, "notes", private=False)
    assert 0 < loss < 20
    assert vault.openings == []


def test_a_vault_without_the_block_gives_the_same_loss_to_the_last_bit(
    started: Simulation, vault: SimpleNamespace
) -> None:
    without = measure.measure_private_loss(started, 0, "notes", private=False)
    assert measure.measure_private_loss(started, 0, "notes") == without
    assert vault.openings == [(0, False)]
    release = first_release(started)
    fetch_X = torch.randn(release.spec.fetch_size, generator=torch.Generator().manual_seed(1))
    vault.block = make_shared_source(release.spec, fetch_X)
    assert measure.measure_private_loss(started, 0, "notes") != without


def test_the_process_prints_one_number_and_no_text(monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []
    monkeypatch.setattr("fedmem.sim.runs.find_run", lambda name: f"folder of {name}")
    monkeypatch.setattr("fedmem.sim.run.load_simulation", lambda folder, progress: folder)
    monkeypatch.setattr(measure, "measure_private_loss", lambda *arguments: asked.append(arguments) or 1.25)
    measure.main(["mini-0001", "2", "notes"])
    assert asked == [("folder of mini-0001", 2, "notes")]
    assert json.loads(capsys.readouterr().out) == {"loss": 1.25}
