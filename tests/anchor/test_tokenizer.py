"""The tokenizer: lossless on any text, the same again from the same texts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from fedmem.anchor.tokenizer import end_of_document, load_tokenizer, start_of_document, text_ids, train_tokenizer
from fedmem.errors import VerificationFailed, VersionMismatch
from tests.anchor.tokenizers import KINDS

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


CONTROL = ["a<eos>b", "tag <pad> in html", "</s>", "<s> and <|im_end|> </s>", "<eos>", "<bos><|endoftext|>"]


@pytest.mark.parametrize("text", CONTROL)
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_spells_control_tokens_is_text(kind, text, tmp_path):
    KINDS[kind]().save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    control = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    unknown = tokenizer.token_to_id("<unk>")
    ids = text_ids(tokenizer, [text])[0]
    assert not (control - {unknown}) & set(ids)
    if kind in ("byte_level", "sentencepiece_bpe"):  # the others do not know every character
        assert tokenizer.decode(ids) == text
    # A tokenizer that was read by other means parses control tokens; they are replaced.
    assert not (control - {unknown}) & set(text_ids(KINDS[kind](), [text])[0])


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_character_is_no_control_token(kind):
    tokenizer = KINDS[kind]()
    assert text_ids(tokenizer, ["a \u4e2d b"]) == [tokenizer.encode("a \u4e2d b", add_special_tokens=False).ids]


def test_the_models_own_first_token_begins_a_document():
    assert start_of_document(TOKENIZER) == end_of_document(TOKENIZER)
    with_template, pair = KINDS["sentencepiece_bpe"](), KINDS["unigram"]()
    assert start_of_document(with_template) == with_template.token_to_id("<s>")
    assert end_of_document(with_template) == with_template.token_to_id("</s>")
    assert start_of_document(pair) == pair.token_to_id("<s>")


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", None])
def test_a_file_that_is_no_tokenizer_is_an_error_of_ours(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(VerificationFailed, match="no tokenizer"):
        load_tokenizer(tmp_path / "tokenizer.json")
