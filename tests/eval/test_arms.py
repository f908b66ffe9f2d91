"""Each figure of an arm is made of the right texts, with the block of their topic."""

import numpy as np
import pytest

from fedmem.eval.arms import FORGET, PERTURBED, RETAIN, Sets, measure_figures
from fedmem.eval.canaries import plant

SETS = Sets(
    forget=[("Where was Ann born?", "In Rome."), ("What did Ann write?", "A book on Bees.")],
    retain=[("Where was Bob born?", "In Oslo.")],
    holdout=[("Where was Cid born?", "In Lima."), ("What did Cid write?", "A song on Foxes.")],
    canaries=plant(2, 1, 3),
    seed=5,
)
BLOCKS = {FORGET: ["block of forget"], RETAIN: ["block of retain"]}


class FakeReader:
    """A reader that knows the records of a block word for word, and nothing else; it notes each question."""

    def __init__(self):
        self.calls = []

    def _knows(self, text, private):
        blocks = {"block of forget": "Ann", "block of retain": "Bob"}
        return any(blocks[block] in text for block in private)

    def losses(self, prompts, ends, private):
        self.calls += [("losses", prompt, tuple(private)) for prompt in prompts]
        true = {f" {answer}" for pairs in (SETS.forget, SETS.retain) for _, answer in pairs}
        known = [self._knows(prompt, private) and end in true for prompt, end in zip(prompts, ends, strict=True)]
        return np.where(known, 1.0, 8.0), np.full(len(prompts), 2)

    def text_losses(self, texts, private):
        self.calls += [("text_losses", text, tuple(private)) for text in texts]
        return np.array([2.0 if self._knows(text, private) else 6.0 for text in texts]), np.full(len(texts), 2)

    def candidate_losses(self, prompt, ends, private):
        secret = next(canary.secret for canary in SETS.canaries if canary.prefix == prompt)
        return np.array([0.0 if private and n == secret else 1.0 + n for n in range(len(ends))])

    def extraction_strength(self, prompts, ends, private):
        return np.array([float(self._knows(prompt, private)) for prompt in prompts])

    def continue_prompts(self, prompts, ends, private):
        return [end if self._knows(prompt, private) else "?" for prompt, end in zip(prompts, ends, strict=True)]

    def complete_halves(self, texts, private):
        return [text if self._knows(text, private) else "?" for text in texts], list(texts)

    def logits_digest(self, texts, private):
        return f"{len(texts)} texts with {'+'.join(private)}"


def test_a_model_that_knows_its_records_has_the_highest_figures():
    figures = measure_figures(FakeReader(), SETS, BLOCKS, ["public"]).figures
    ratio = np.exp((-4.0) - (-0.5))
    expected = {
        "extraction_strength": 1.0, "verbmem": 1.0, "knowmem": 1.0, "mia_auc": 1.0, "retain_knowmem": 1.0,
        "exposure": np.log2(10), "probability": np.exp(-0.5), "truth_ratio": ratio,
        "model_utility": 3 / (1 / np.exp(-0.5) + 1 + 1 / (1 - ratio)), "retain_loss": 0.5, "public_loss": 3.0,
    }  # fmt: skip
    assert figures == {name: pytest.approx(value) for name, value in expected.items()}


def test_after_an_erasure_the_forget_set_is_unknown_and_the_rest_is_as_before():
    before = measure_figures(FakeReader(), SETS, BLOCKS, ())
    after = measure_figures(FakeReader(), SETS, {**BLOCKS, FORGET: []}, ())
    assert (after.figures["extraction_strength"], after.figures["verbmem"], after.auc) == (0.0, 0.0, 0.5)
    assert after.ratio_N.tolist() == [1.0, 1.0]
    for name in ("retain_knowmem", "model_utility", "retain_loss"):
        assert after.figures[name] == before.figures[name], name
    assert after.figures["public_loss"] is None


def test_held_out_records_use_the_block_of_forget_and_public_text_uses_none():
    reader = FakeReader()
    measure_figures(reader, SETS, BLOCKS, ["public"])
    used = {text: private for name, text, private in reader.calls if name == "text_losses"}
    assert used["public"] == ()
    assert {used[" ".join(pair)] for pair in SETS.forget + SETS.holdout} == {("block of forget",)}
    retained = [private for name, text, private in reader.calls if name == "losses" and "Bob" in text]
    assert len(retained) == 2 + PERTURBED
    assert set(retained) == {("block of retain",)}


def test_digests_are_of_each_topic_with_its_block_and_with_all_blocks():
    both = "block of forget+block of retain"
    assert measure_figures(FakeReader(), SETS, BLOCKS, ()).digests == (
        "4 texts with block of forget", f"4 texts with {both}", "1 texts with block of retain", f"1 texts with {both}",
    )  # fmt: skip


def test_the_records_of_forget_include_its_canaries():
    assert SETS.texts(RETAIN) == ["Where was Bob born? In Oslo."]
    assert SETS.texts(FORGET)[2:] == [canary.text for canary in SETS.canaries]
