"""Train the anchor's tokenizer, a byte-level BPE, on public text only, and use it or one from elsewhere.

Invariants
- A trained tokenizer encodes and decodes every text without loss; it has no unknown token.
- Text is text: `text_ids` gives no control token, also for a text that spells one, such as `<eos>`.
- A special token ends a document (`end_of_document`). The model's own first token begins it, or else the same token
  (`start_of_document`). Here both are `<eos>`.
- `PAD` is not a token of any tokenizer. A model reads another token at padded positions, and the result is ignored.
- Same texts in the same order give the same tokenizer.

>>> tokenizer = train_tokenizer(["one two", "two three"], vocab_size=300)
>>> tokenizer.decode(tokenizer.encode("two").ids)
'two'
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from fedmem.errors import VerificationFailed, VersionMismatch

PAD = -1
# The names of tokens that end a document, each with the token that begins one where a tokenizer has both.
_ENDS = {"<eos>": "<bos>", "</s>": "<s>", "<|endoftext|>": "<|startoftext|>", "<|end_of_text|>": "<|begin_of_text|>"}
_UNKNOWN = "\U0010ffff"  # a character of no language, for which a tokenizer gives its unknown token


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer.

    Args:
        texts: public text.
        vocab_size: number of entries, including the 256 bytes and the two special tokens `<pad>` and `<eos>`.

    Returns:
        The trained tokenizer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _plain(tokenizer)


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer, without truncation and padding.

    Args:
        path: a `tokenizer.json`.

    Raises:
        VerificationFailed: the file is missing, or is no tokenizer.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no class of its own
        raise VerificationFailed(f"{path} is no tokenizer; put the model's own tokenizer.json there.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return _plain(tokenizer)


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.encode_special_tokens = True  # encode them as the text that they are; no file keeps this setting
    return tokenizer


def text_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of texts, without a token that begins or ends a document.

    Args:
        tokenizer: of any anchor, from `train_tokenizer` or `load_tokenizer`.
        texts: any texts.

    Returns:
        The ids of each text. None is a control token; only a tokenizer that does not know every character gives its
        unknown token.
    """
    control = set(special_tokens(tokenizer).values()) - {token.id for token in tokenizer.model.tokenize(_UNKNOWN)}
    return [
        encoding.ids if control.isdisjoint(encoding.ids) else _spelled_out(tokenizer, encoding.ids, control)
        for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)
    ]


def _spelled_out(tokenizer: Tokenizer, ids: Sequence[int], control: set[int]) -> list[int]:
    """Return tokens with each control token replaced by those of its characters.

    The vocabulary of a Unigram model holds the control tokens as pieces of text, too.
    """
    spelled_ids = list[int]()
    for number in ids:
        characters = (tokenizer.id_to_token(number) or "") if number in control else ""
        spelled_ids += [token.id for one in characters for token in tokenizer.model.tokenize(one)] or [number]
    return spelled_ids


def end_of_document(tokenizer: Tokenizer) -> int:
    """Return the id of the special token that ends a document.

    Args:
        tokenizer: of any anchor.

    Raises:
        VersionMismatch: the tokenizer has none of the tokens that fedmem knows.
    """
    special = special_tokens(tokenizer)
    return special[_end_name(special)]


def start_of_document(tokenizer: Tokenizer) -> int:
    """Return the id of the special token that begins a document.

    It is the first token that the tokenizer itself adds to a text. If it adds none, it is the token that belongs to
    the end of a document, such as `<s>` to `</s>`, or else the end itself, which separates documents.

    Args:
        tokenizer: of any anchor.

    Raises:
        VersionMismatch: the tokenizer has no special token that ends a document.
    """
    special = special_tokens(tokenizer)
    name = _end_name(special)
    encoding = tokenizer.encode("a", add_special_tokens=True)
    if encoding.special_tokens_mask[:1] == [1]:
        return int(encoding.ids[0])
    return special.get(_ENDS[name], special[name])


def special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the ids of the special tokens by their names. Decoding leaves them out.

    Args:
        tokenizer: of any anchor.
    """
    return {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}


def _end_name(special: dict[str, int]) -> str:
    for name in _ENDS:
        if name in special:
            return name
    raise VersionMismatch(
        f"The tokenizer has no special token that ends a document; add one of {', '.join(_ENDS)} to its "
        "tokenizer.json, or use the tokenizer of a base model."
    )
