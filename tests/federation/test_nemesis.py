"""Whatever devices and networks do, a round ends with the honest replies that came in time, each of them once."""

import logging
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmem.coordinator.journal import Journal
from fedmem.errors import StorageError
from fedmem.federation import fixedpoint
from tests.coordinator.test_journal import Killed, Power, state
from tests.federation.conftest import UNSAFE, Toy, toy_params
from tests.federation.nemesis import (
    FAULTS,
    HONEST,
    NODES,
    ROUNDS,
    SECRET,
    Fleet,
    bytes_of,
    ledger_rounds,
    only_honest,
)

NOISY = {"noise_multiplier": 0.5}
Make = Callable[..., Toy]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_its_own_update_at_most(tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    script = {(2, 1003): fault}
    with caplog.at_level(logging.WARNING):
        got, journal = Fleet(tmp_path / "got", script).run()
    want, _ = Fleet(tmp_path / "want", only_honest(script)).run()
    assert bytes_of(got) == bytes_of(want)
    lost = 0 if fault in HONEST else 1
    assert [row.counted for row in journal.traffic()] == [8, 8 - lost, 8]
    assert ledger_rounds(journal) == [1, 2, 3]
    assert SECRET not in caplog.text
    silent = fault in ("death", "skew")
    assert silent or caplog.text


def test_a_lost_update_would_be_noticed(tmp_path: Path) -> None:
    whole, _ = Fleet(tmp_path / "whole", {}).run()
    less, _ = Fleet(tmp_path / "less", {(2, 1003): "death"}).run()
    assert bytes_of(whole) != bytes_of(less)


def scripts(seed: int) -> dict[tuple[int, int], str]:
    draw = random.Random(seed)
    share = draw.choice([0.2, 0.5, 0.8])
    cells = [(number, node) for number in range(1, ROUNDS + 1) for node in NODES]
    return {cell: draw.choice(FAULTS) for cell in cells if draw.random() < share}


CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    NOISY,
    {**NOISY, "sampling_rate": 0.6},
    {**NOISY, "cohort_size": 5},
]
SETTINGS: list[dict[str, Any]] = [{}, {"optimiser": "fedadam"}, {"optimiser": "diloco"}, {"trim": 0.2}]


@pytest.mark.parametrize("seed", range(24))
def test_a_run_under_faults_equals_one_of_the_honest_alone(tmp_path: Path, seed: int) -> None:
    script, plan = scripts(seed), CONFIGURATIONS[seed % 4]
    settings = SETTINGS[seed // 4 % 4]
    settings = {} if plan and "trim" in settings else settings
    got, journal = Fleet(tmp_path / "got", script, seed=seed, settings=settings, **plan).run()
    # Another order of replies as well.
    want, other = Fleet(tmp_path / "want", only_honest(script), seed=seed + 1, settings=settings, **plan).run()
    assert bytes_of(got) == bytes_of(want)
    assert [row.counted for row in journal.traffic()] == [row.counted for row in other.traffic()]
    assert ledger_rounds(journal) == list(range(1, ROUNDS + 1))


def test_the_final_parameters_are_the_sum_of_honest_updates(tmp_path: Path) -> None:
    """Against a slow oracle that knows nothing of grids: every honest update by hand, in Python's integers."""
    script = {(1, 1001): "garbage", (1, 1002): "late", (1, 1005): "duplicate"}
    made = Fleet(tmp_path, script)
    got, _ = made.run(until=1)
    request = made.coordinator().open(list(NODES)).request
    totals = {name: [0] * value.size for name, value in toy_params().items()}
    for index in (0, 3, 4, 5, 6, 7):
        context = type("Context", (), {"node_config": {"partition-id": index}})
        answer = made.toy.device(context).answer(request)  # type: ignore[arg-type]
        for name, cells in answer.arrays.items():
            totals[name] = [a + int(b) for a, b in zip(totals[name], cells.ravel(), strict=True)]
    step = fixedpoint.grid_step(1.0)
    for name, before in toy_params().items():
        moved = np.array([total * step / 8 for total in totals[name]], np.float32).reshape(before.shape)
        assert (got.params[name] == before + moved).all()


def test_half_of_the_cohort_gone_is_an_ordinary_round(tmp_path: Path) -> None:
    script = {(2, node): "death" for node in list(NODES)[::2]}
    _, journal = Fleet(tmp_path, script).run()
    assert [row.counted for row in journal.traffic()] == [8, 4, 8]


def test_with_noise_an_empty_round_is_an_ordinary_one(tmp_path: Path) -> None:
    """Readers must not see how many answered: that depends on who was drawn."""
    script = {(2, node): "death" for node in NODES}
    _, journal = Fleet(tmp_path, script, settings={"minimum": 4}, **NOISY).run()
    assert [(row.counted, row.aborted) for row in journal.traffic()] == [(8, False), (0, False), (8, False)]
    assert not np.isclose(journal.params_at(1)["w"], journal.params_at(2)["w"]).any()


UNREST = {(1, 1001): "garbage", (1, 1006): "hang", (2, 1002): "late", (2, 1003): "replay", (3, 1004): "duplicate"}
ABORTING = UNREST | {(1, node): "nan" for node in list(NODES)[:6]}
STORMS = {
    "fedavg": (UNREST, {**NOISY, "sampling_rate": 0.9}, {}),
    "fedadam": (UNREST, {**NOISY, "cohort_size": 6}, {"optimiser": "fedadam"}),
    "diloco, a round aborted": (ABORTING, UNSAFE, {"optimiser": "diloco", "minimum": 4}),
}


KILLS = ("before", "torn", "after")


@pytest.mark.parametrize("storm", STORMS.values(), ids=STORMS.keys())
def test_a_coordinator_killed_at_every_write_under_faults_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storm: tuple[Any, Any, Any]
) -> None:
    script, plan, settings = storm
    with monkeypatch.context() as patch:
        power = Power(patch, at=0, when="before")
        want, whole = Fleet(tmp_path / "whole", script, settings=settings, **plan).run(until=2)
    assert power.writes >= 7
    for at in range(1, power.writes + 1):
        made = Fleet(tmp_path / f"{at}", script, settings=settings, **plan)
        with monkeypatch.context() as patch:
            # Calm runs are cut in every way at every write in test_journal; here the ways take turns.
            Power(patch, at, KILLS[at % len(KILLS)])
            with pytest.raises(Killed):
                made.run(until=2)
        got, journal = made.run(until=2)
        assert bytes_of(got) == bytes_of(want)
        assert state(journal) == state(Journal(made.toy.root)) == state(whole)


def test_a_disk_that_fills_in_mid_round_stops_the_run_and_a_later_one_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want, whole = Fleet(tmp_path / "whole", UNREST, **NOISY).run()
    real = os.pwrite
    for at in range(1, 10, 2):
        made, calls = Fleet(tmp_path / f"{at}", UNREST, **NOISY), iter(range(1, 10**6))

        def full(handle: int, data: bytes, offset: int, at: int = at, calls: Any = calls) -> int:
            if next(calls) >= at:
                # Half of it still fits: the torn line must not be read later.
                real(handle, data[: len(data) // 2], offset)
                raise OSError(28, "No space left on device")
            return real(handle, data, offset)

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(StorageError, match="free some space"):
                made.run()
        got, journal = made.run()
        assert bytes_of(got) == bytes_of(want)
        assert state(journal) == state(whole)


def test_a_lying_device_moves_the_result_by_no_more_than_its_clipped_update(tmp_path: Path) -> None:
    """What no check can see: well-formed updates of the largest size from one tenth of the devices."""
    honest, _ = Fleet(tmp_path / "honest", {}).run(until=1)
    made = Fleet(tmp_path / "lying", {})
    made.toy.train = lambda texts: lambda params, config: {n: v - 1e6 for n, v in params.items()}
    liars, _ = made.run(until=1)
    start = toy_params()
    moved = [np.square((liars.params[n] - start[n]).astype(np.float64)).sum() for n in start]
    assert np.sqrt(sum(moved)) <= 1.0 + 1e-6
    assert bytes_of(honest) != bytes_of(liars)
