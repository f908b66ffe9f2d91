"""Tokenizers of the kinds that models come with, trained on a few lines."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from fedmem.anchor.tokenizer import train_tokenizer

TEXTS = [f"A small river, number {n}, runs to the {('sea', 'lake')[n % 2]}; it's no canal." for n in range(40)]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|im_end|>"]


def byte_level() -> Tokenizer:
    """As of GPT-2 and Qwen, and those that fedmem trains."""
    tokenizer = train_tokenizer(TEXTS, 330)
    tokenizer.add_special_tokens(["<|im_end|>"])
    return tokenizer


def unigram() -> Tokenizer:
    """SentencePiece's Unigram; its vocabulary holds the control tokens as pieces."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=70, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def sentencepiece_bpe() -> Tokenizer:
    """As of Llama 2 and Mistral: a byte for each unknown character, and a first token of its own."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [*SPECIAL, *(f"<0x{number:02X}>" for number in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    # The trainer calls the bytes special, too; in the files of such models they are not.
    plain = Tokenizer(tokenizer.model)
    plain.normalizer, plain.decoder = tokenizer.normalizer, tokenizer.decoder
    plain.add_special_tokens(SPECIAL)
    plain.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", plain.token_to_id("<s>"))]
    )
    return plain


def wordpiece() -> Tokenizer:
    """As of BERT, but split at blanks alone, so that a control token can be a word."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, "< / s > p a d e o | i m _ n"], trainer)
    return tokenizer


KINDS = {"byte_level": byte_level, "unigram": unigram, "sentencepiece_bpe": sentencepiece_bpe, "wordpiece": wordpiece}
