"""The tokenizer: lossless on any text, the same again from the same texts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from fedmem.anchor.tokenizer import end_of_document, train_tokenizer
from fedmem.errors import VersionMismatch

TEXTS = [f"a small river number {n} runs to the {('sea', 'lake')[n % 2]}" for n in range(50)]
TOKENIZER = train_tokenizer(TEXTS, 320)


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_any_text_survives(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text


def test_same_texts_same_tokenizer():
    assert train_tokenizer(TEXTS, 320).to_str() == TOKENIZER.to_str()


def test_special_tokens_have_their_numbers():
    assert (TOKENIZER.token_to_id("<pad>"), TOKENIZER.token_to_id("<eos>")) == (0, end_of_document(TOKENIZER))
    assert TOKENIZER.get_vocab_size() == 320


@pytest.mark.parametrize("name", ["</s>", "<|endoftext|>", "<|end_of_text|>"])
def test_the_end_of_a_document_goes_by_its_name(name):
    other = Tokenizer(models.BPE({"a": 0, "b": 1, "</s>x": 2}, []))
    other.add_tokens([name])
    with pytest.raises(VersionMismatch, match="ends a document"):
        end_of_document(other)
    other.add_special_tokens([name])
    assert end_of_document(other) == 3
