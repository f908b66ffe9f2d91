"""A reader fetches by the prompt and cuts texts, and its digest covers every bit of the logits."""

import numpy as np
import pytest
import torch

from fedmem.anchor.tokenizer import end_of_document
from fedmem.eval.canaries import plant
from fedmem.eval.reader import Reader
from fedmem.eval.targets import join_targets, target_losses
from fedmem.routing.embedder import StaticEmbedder
from tests.eval.invented import FACTS


@pytest.fixture(scope="module")
def reader(release):
    return Reader(release, StaticEmbedder(), 64)


def test_candidate_losses_are_those_of_each_alone(reader):
    canary = plant(1, 1, 0)[0]
    each = [reader.losses([canary.prefix], [end], ())[0][0] for end in canary.candidates]
    np.testing.assert_allclose(reader.candidate_losses(canary.prefix, canary.candidates, ()), each, atol=1e-4)


def test_losses_fetch_by_the_prompt(release, reader):
    question, answer = FACTS["Mira Solen"][0]
    losses, counts = reader.losses([question], [f" {answer}"], ())
    tokenizer, end = release.tokenizer, end_of_document(release.tokenizer)
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in (question, f" {answer}")]
    targets = join_targets([[end, *ids[0]]], [ids[1]])
    bare, bare_counts = target_losses(release.anchor(), targets)
    assert counts.tolist() == bare_counts.tolist() == [len(ids[1])]
    assert abs(losses[0] - bare[0]) > 1e-4  # the shared blocks were in use


def test_halves_join_to_the_whole(reader):
    texts = [" ".join(pair) for pair in FACTS["Juno Keld"]]
    said, wanted = reader.complete_halves(texts, ())
    assert len(said) == len(wanted) == 3
    assert all(text.endswith(end) and 0 < len(end) < len(text) for text, end in zip(texts, wanted, strict=True))


def test_a_digest_is_of_the_bits_of_the_logits(release, reader):
    texts = [" ".join(pair) for pair in FACTS["Juno Keld"]]
    digest = reader.logits_digest(texts, ())
    assert digest == Reader(release, StaticEmbedder(), 64).logits_digest(texts, ())
    assert digest != reader.logits_digest(texts[::-1], ())
    other = Reader(release, StaticEmbedder(), 64)
    with torch.no_grad():
        weight_D = other._model.model.norm.weight
        weight_D.copy_(torch.nextafter(weight_D, weight_D + 1))  # by one bit
    moved = other.losses(texts, texts, ())[0]
    np.testing.assert_allclose(moved, reader.losses(texts, texts, ())[0], rtol=1e-5)
    assert other.logits_digest(texts, ()) != digest
