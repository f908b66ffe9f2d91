"""Exact search over vectors in memory: the same result as sorting all dot products, and nothing left after `wipe`."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedmem.vault.store.vectors import VectorIndex


@given(st.integers(0, 600), st.integers(0, 12), st.integers(0, 10_000))
def test_it_finds_what_sorting_everything_finds(count: int, k: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    vectors = generator.integers(-2, 3, (count, 4)).astype(np.float32)  # many equal scores
    index = VectorIndex()
    for number, vector in enumerate(vectors):
        index.add(f"{number:04}", vector)
    query = generator.integers(-2, 3, 4).astype(np.float32)
    scores = {f"{number:04}": float(vector @ query) for number, vector in enumerate(vectors)}
    assert index.nearest(query, k) == sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]


def test_vectors_of_another_width_are_left_out() -> None:
    index = VectorIndex()
    index.add("short", np.ones(2, np.float32))
    index.add("long", np.ones(3, np.float32))
    assert index.nearest(np.ones(3, np.float32), 9) == [("long", 3.0)]
    assert index.nearest(np.ones(5, np.float32), 9) == []


def test_every_array_that_it_ever_had_is_zero_after_wipe() -> None:
    index = VectorIndex()
    arrays = []
    for number in range(2000):
        index.add(str(number), np.full(8, 7, np.float32))
        arrays.append(index._rows[8])
    index.wipe()
    assert not any(rows.any() for rows in {id(rows): rows for rows in arrays}.values())
    assert (index.last_row, index.nearest(np.ones(8, np.float32), 3)) == (0, [])
