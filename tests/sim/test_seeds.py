"""A difference is Student's over pairs of seeds, and is claimed only for losses of the same text."""

import math
from typing import Any

import pytest

from fedmem.sim.compare import compare
from fedmem.sim.seeds import confidence_interval
from tests.sim.finished import Put

T_975 = {2: 12.7062, 3: 4.3027}  # Student's 97.5 % point for so many seeds, from a printed table


@pytest.mark.parametrize("seeds", [2, 3])
def test_difference_and_interval_are_students_over_pairs(put: Put, seeds: int) -> None:
    gains, names = [0.1, 0.3, 0.2][:seeds], []
    for seed, gain in enumerate(gains):
        level = 5.0 + seed  # far larger than the gain: only pairs show it
        names.append(put(f"a{seed}", {"loss.public.fetched": level}, seed=seed))
        names.append(put(f"b{seed}", {"loss.public.fetched": level - gain, "config.cotrain.batch": 8}, seed=seed))
    (found,) = compare(names)["differences"]
    middle = sum(gains) / seeds
    half = T_975[seeds] * math.sqrt(sum((g - middle) ** 2 for g in gains) / (seeds - 1) / seeds)
    assert (found["setting"], found["against"], found["seeds"]) == ("B", "A", list(range(seeds)))
    assert found["loss"]["public"]["fetched"] == pytest.approx(-middle)
    assert found["interval"]["loss"]["public"]["fetched"] == pytest.approx([-middle - half, -middle + half], rel=1e-4)


def test_the_interval_covers_as_often_as_it_says() -> None:
    import numpy as np

    draws = np.random.default_rng(5).normal(size=(2000, 3))
    hits = sum(low < 0 < high for low, high in (confidence_interval(list(map(float, row))) for row in draws))
    assert 0.93 < hits / 2000 < 0.97


def claimed_against(
    put: Put, changes: dict[str, Any], seeds: tuple[tuple[int, ...], tuple[int, ...]]
) -> dict[str, Any]:
    """Setting A at the first seeds, B with `changes` at the second."""
    names = [put(f"a{n}", seed=seed) for n, seed in enumerate(seeds[0])]
    return compare(names + [put(f"b{n}", changes, seed=seed) for n, seed in enumerate(seeds[1])])


@pytest.mark.parametrize("seeds", [((1,), (1,)), ((1, 2), (3, 4)), ((1, 2), (2, 3)), ((1, 1), (1, 1))])
def test_fewer_than_two_seeds_in_common_claim_nothing(put: Put, seeds: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    data = claimed_against(put, {"config.cotrain.batch": 8}, seeds)
    assert data["differences"] == []
    assert "No difference between A and B is claimed" in data["notes"][0]
    assert "--seed" in data["notes"][0]


@pytest.mark.parametrize("key", ["config.public.documents", "config.anchor.vocabulary", "config.anchor.length"])
def test_losses_of_other_text_or_tokens_are_not_subtracted(put: Put, key: str) -> None:
    data = claimed_against(put, {key: 99}, ((1, 2), (1, 2)))
    assert data["differences"] == []
    assert key.removeprefix("config.") in data["notes"][0]


def test_private_losses_of_other_private_text_are_not_subtracted(put: Put) -> None:
    ((same,), (other,)) = (
        claimed_against(lambda name, *a, _p=prefix, **k: put(_p + name, *a, **k), changes, ((1, 2), (1, 2)))[
            "differences"
        ]
        for prefix, changes in (("s", {"config.cotrain.batch": 8}), ("o", {"config.private": []}))
    )
    assert set(same["loss"]) == {"public", "rounds", "private"}
    assert set(other["loss"]) == set(other["interval"]["loss"]) == {"public", "rounds"}


def test_other_own_texts_are_not_subtracted(put: Put) -> None:
    names = [
        put(f"{file}{seed}", {"corpus": "user"}, seed=seed, source=f"/{file}")
        for file in ("one", "two")
        for seed in (1, 2)
    ]
    data = compare(names)
    assert (data["differences"], "other text" in data["notes"][0]) == ([], True)
