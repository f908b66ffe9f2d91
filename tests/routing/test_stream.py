"""Streamed samples against the whole array in memory."""

import tracemalloc
from collections.abc import Iterator
from itertools import chain, repeat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmem.errors import UsageError
from fedmem.routing import stream as streaming
from fedmem.routing.stream import Chunks, Stream, samples

ROWS = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)
NODES = np.random.default_rng(1).integers(0, 7, 500) % 6  # node 6 has no rows


def cut(rows: np.ndarray, sizes: list[int]) -> Chunks:
    """The rows in chunks of `sizes`, over and over."""

    def chunks() -> Iterator[np.ndarray]:
        start = 0
        for size in chain(sizes, repeat(max(sizes[-1], 1))):
            if start >= len(rows):
                return
            yield rows[start : start + size]
            start += size

    return chunks


def taken(chunks: Chunks, most: int, capacity: int, seed: int = 3) -> list[tuple[int, list[list[float]]]]:
    found = samples(Stream.of(chunks), NODES, (seed, 0), 7, most=most, capacity=capacity)
    return [(node, rows_ND.tolist()) for node, rows_ND in found]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=6), st.integers(100, 600), st.integers(1, 64))
def test_with_room_for_all_each_node_gets_its_rows_in_order(sizes: list[int], held: int, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "_ROWS", piece)
        found = taken(cut(ROWS, sizes), 200, max(held, 200))
    assert found == [(node, ROWS[node == NODES].tolist()) for node in range(7)]


def test_samples_do_not_depend_on_chunks_or_on_what_is_held() -> None:
    whole = taken(cut(ROWS, [500]), most=20, capacity=10_000)
    assert [len(rows) for _, rows in whole] == [20] * 6 + [0]
    for sizes, held in (([1], 20), ([7, 0, 300], 45), ([499], 60)):
        assert taken(cut(ROWS, sizes), most=20, capacity=held) == whole
    assert taken(cut(ROWS, [500]), most=20, capacity=10_000, seed=4) != whole
    for node, rows in whole[:6]:
        own = ROWS[node == NODES].tolist()
        assert [row for row in own if row in rows] == rows  # its own, in stream order, none twice


def test_every_row_is_as_likely_to_be_drawn() -> None:
    drawn = np.zeros(60)
    chunks = cut(np.arange(60, dtype=np.float32)[:, None], [13])
    for seed in range(400):
        ((_, rows_ND),) = samples(Stream.of(chunks), np.zeros(60, dtype=np.int64), (seed,), 1, most=15, capacity=15)
        drawn[rows_ND[:, 0].astype(int)] += 1
    assert drawn.sum() == 400 * 15
    assert (abs(drawn - 100) < 5 * np.sqrt(400 * 0.25 * 0.75)).all()


def test_nodes_share_a_pass_while_they_fit() -> None:
    sizes, passes = np.bincount(NODES, minlength=7), 0
    assert sizes[0] > 100 > sizes[1:].max() > 200 / 3

    def counted() -> Iterator[np.ndarray]:
        nonlocal passes
        passes += 1
        yield ROWS

    stream = Stream.of(counted)
    for held, wanted in ((500, 1), (499, 2), (200, 4)):
        passes = 0
        list(samples(stream, NODES, (0,), 7, most=200, capacity=held))
        assert passes == wanted


def test_the_rows_are_never_held_whole() -> None:
    count, dim, held = 40_000, 64, 4_000

    def generated() -> Iterator[np.ndarray]:
        for start in range(0, count, 500):
            yield np.random.default_rng(start).normal(size=(500, dim)).astype(np.float32)

    nodes = np.arange(count) % 20
    tracemalloc.start()
    try:
        total = sum(len(rows) for _, rows in samples(Stream.of(generated), nodes, (0,), 20, most=held, capacity=held))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == count
    assert held * dim * 4 < peak < 0.35 * count * dim * 4


def test_an_array_and_a_function_are_the_same() -> None:
    stream = Stream.of(ROWS)
    assert (stream.count, stream.dim) == (500, 6)
    assert np.array_equal(np.concatenate([piece for _, piece in stream.pieces()]), ROWS)


@pytest.mark.parametrize(
    "chunks",
    [[], [ROWS[:0]], [ROWS[0]], [ROWS, ROWS[:, :5]], [ROWS, np.full((1, 6), np.nan)], [np.full((1, 6), np.inf)],
     ["no vectors"], [object()]],
)  # fmt: skip
def test_what_is_no_stream_of_vectors(chunks: list[np.ndarray]) -> None:
    with pytest.raises(UsageError):
        Stream.of(lambda: chunks)


@pytest.mark.parametrize("second", [[], [ROWS[:499]], [ROWS, ROWS[:1]], [np.zeros((500, 5))], [ROWS, ROWS[:0, :5]]])
def test_a_stream_that_changes_is_refused(second: list[np.ndarray]) -> None:
    turns = iter([[ROWS], second])
    stream = Stream.of(lambda: next(turns))
    with pytest.raises(UsageError):
        list(stream.pieces())


def test_a_generator_that_runs_dry_is_refused() -> None:
    once = iter([ROWS])
    with pytest.raises(UsageError, match="anew"):
        list(Stream.of(lambda: once).pieces())
