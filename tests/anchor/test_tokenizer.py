"""The tokenizer: lossless on any text, the same again from the same texts."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fedmem.anchor.tokenizer import EOS, PAD, train_tokenizer

TEXTS = [f"a small river number {n} runs to the {('sea', 'lake')[n % 2]}" for n in range(50)]
TOKENIZER = train_tokenizer(TEXTS, 320)


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_any_text_survives(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text


def test_same_texts_same_tokenizer():
    assert train_tokenizer(TEXTS, 320).to_str() == TOKENIZER.to_str()


def test_special_tokens_have_their_numbers():
    assert (TOKENIZER.token_to_id("<pad>"), TOKENIZER.token_to_id("<eos>")) == (PAD, EOS)
    assert TOKENIZER.get_vocab_size() == 320
