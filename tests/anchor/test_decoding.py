"""Streams: the pieces of a continuation are the text that the whole has after the prompt."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedmem.anchor.decoding import ContinuationDecoder, decode_continuation
from fedmem.anchor.tokenizer import text_ids
from tests.anchor.tokenizers import KINDS

TOKENIZERS = {name: make() for name, make in KINDS.items()}
kinds = pytest.mark.parametrize("kind", TOKENIZERS)


def streamed(tokenizer, prompt, ids):
    decoder = ContinuationDecoder(tokenizer, prompt)
    return [*(decoder.add(token) for token in ids), decoder.finish()]


@kinds
def test_the_blank_between_prompt_and_continuation_is_kept(kind):
    tokenizer = TOKENIZERS[kind]
    ids = text_ids(tokenizer, ["A small river runs"])[0]
    for cut in range(len(ids)):
        prompt = tokenizer.decode(ids[:cut])
        assert prompt + "".join(streamed(tokenizer, ids[:cut], ids[cut:])) == "A small river runs"
        assert prompt + decode_continuation(tokenizer, ids[:cut], ids[cut:]) == "A small river runs"


@kinds
@settings(max_examples=300, deadline=None)
@given(prompt=st.lists(st.integers(0, 10**6), max_size=8), ids=st.lists(st.integers(0, 10**6), max_size=12))
@example(prompt=[], ids=[0xC3 + 5, 0xA9 + 5, 0xC3 + 5])  # of byte fallback: a character, then half of one
def test_any_tokens_give_the_suffix_of_the_whole(kind, prompt, ids):
    tokenizer = TOKENIZERS[kind]
    size = tokenizer.get_vocab_size()
    prompt, ids = [token % size for token in prompt], [token % size for token in ids]
    assert "".join(streamed(tokenizer, prompt, ids)) == decode_continuation(tokenizer, prompt, ids)


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_bpe"])
@settings(max_examples=100, deadline=None)
@given(prompt=st.text(), text=st.text())
@example(prompt="river ", text="héé\ufffd")
@example(prompt="\ufffd", text="")
def test_any_text_survives_in_whole_characters(kind, prompt, text):
    tokenizer = TOKENIZERS[kind]
    before, ids = text_ids(tokenizer, [prompt])[0], tokenizer.encode(text, add_special_tokens=False).ids
    pieces = streamed(tokenizer, before, ids)
    assert tokenizer.decode(before) + "".join(pieces) == tokenizer.decode([*before, *ids])
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_the_cost_of_a_token_does_not_grow():
    tokenizer = TOKENIZERS["byte_level"]
    decoder = ContinuationDecoder(tokenizer, text_ids(tokenizer, ["river " * 2000])[0])
    ids = text_ids(tokenizer, [" canal, é" * 4000])[0]

    def seconds(part):
        start = time.process_time()
        for token in part:
            decoder.add(token)
        return time.process_time() - start

    first = seconds(ids[: len(ids) // 2])
    assert seconds(ids[len(ids) // 2 :]) < 3 * first + 0.1
