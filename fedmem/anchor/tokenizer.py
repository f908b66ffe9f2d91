"""Train the anchor's tokenizer, a byte-level BPE, on public text only.

Invariants
- Every text is encoded and decoded without loss; there is no unknown token.
- The same token begins and ends a document, here `<eos>`. Other tokenizers have another one (`end_of_document`).
- `PAD` is not a token of any tokenizer. A model reads another token at padded positions, and the result is ignored.
- Same texts in the same order give the same tokenizer.

>>> tokenizer = train_tokenizer(["one two", "two three"], vocab_size=300)
>>> tokenizer.decode(tokenizer.encode("two").ids)
'two'
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from fedmem.errors import VersionMismatch

PAD = -1
_ENDS = ("<eos>", "</s>", "<|endoftext|>", "<|end_of_text|>")


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
    return tokenizer


def end_of_document(tokenizer: Tokenizer) -> int:
    """Return the id of the special token that ends a document.

    Args:
        tokenizer: of any anchor.

    Raises:
        VersionMismatch: the tokenizer has none of the tokens that fedmem knows.
    """
    special = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    for name in _ENDS:
        if name in special:
            return special[name]
    raise VersionMismatch(
        f"The tokenizer has no special token that ends a document; add one of {', '.join(_ENDS)} to its "
        "tokenizer.json, or use the tokenizer of a base model."
    )
