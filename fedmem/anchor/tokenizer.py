"""The anchor's tokenizer: byte-level BPE, trained on public text only.

Invariants
- Any text encodes and decodes without loss; there is no unknown token.
- `<pad>` is 0 and `<eos>` is 1; `<eos>` opens and closes each document.
- Same texts in the same order give the same tokenizer.

>>> tokenizer = train_tokenizer(["one two", "two three"], vocab_size=300)
>>> tokenizer.decode(tokenizer.encode("two").ids)
'two'
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

PAD, EOS = 0, 1


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE of `vocab_size` entries, the 256 bytes and the two special tokens included."""
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
