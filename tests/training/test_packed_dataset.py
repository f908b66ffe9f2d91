"""Rows hold documents of one leaf, keep their paths, and count the tokens that a run reads."""

import numpy as np

from fedmem.anchor.tokenizer import PAD
from fedmem.training.packed_dataset import plain_rows, routed_rows
from fedmem.training.sequences import Batches
from tests.training.test_loop import TEXTS, TOKENIZER

LENGTH = 48


def paths_of(texts: list[str]) -> np.ndarray:
    leaves = np.array([TEXTS.index(text) % 4 for text in texts])
    return np.stack([leaves // 2, leaves], axis=1)


def documents(tokens_T) -> list[str]:
    """The documents of a row; every document ends with token 1 and the next begins with it."""
    ids = tokens_T[tokens_T != PAD].tolist()
    return [text for text in TOKENIZER.decode(ids, skip_special_tokens=False).split("<eos>") if text]


def test_every_row_has_documents_of_one_leaf_and_their_path():
    rows = routed_rows(TOKENIZER, TEXTS, LENGTH, paths_of)
    placed = [(text, path.tolist()) for row, path in zip(rows.packed.tokens_MT, rows.paths_MP, strict=True)
              for text in documents(row)]  # fmt: skip
    assert sorted(text for text, _ in placed) == sorted(TEXTS)
    assert all(path == paths_of([text])[0].tolist() for text, path in placed)
    assert any(len(documents(row)) > 1 for row in rows.packed.tokens_MT)


def test_plain_rows_have_no_path_and_need_fewer_rows():
    plain, routed = plain_rows(TOKENIZER, TEXTS, LENGTH), routed_rows(TOKENIZER, TEXTS, LENGTH, paths_of)
    assert plain.paths_MP.shape == (len(plain), 0)
    assert len(plain) <= len(routed)


def test_a_selection_keeps_rows_and_paths_together():
    rows = routed_rows(TOKENIZER, TEXTS, LENGTH, paths_of)
    mask_M = rows.paths_MP[:, 0] == 1
    chosen = rows.select(mask_M)
    assert 0 < len(chosen) == mask_M.sum() < len(rows)
    assert (chosen.paths_MP == rows.paths_MP[mask_M]).all()
    assert (chosen.packed.tokens_MT == rows.packed.tokens_MT[mask_M]).all()
    assert len(rows.select(np.zeros(len(rows), dtype=bool))) == 0


def test_the_tokens_of_a_run_are_those_of_its_batches():
    rows, steps, batch = plain_rows(TOKENIZER, TEXTS, LENGTH), 7, 3
    batches = Batches(len(rows), batch, 5)
    counted = sum(int((rows.packed.tokens_MT[batches.at(step)] != PAD).sum()) for step in range(steps))
    assert rows.tokens(steps, batch, 5) == counted > 0
    assert rows.tokens(0, batch, 5) == 0
