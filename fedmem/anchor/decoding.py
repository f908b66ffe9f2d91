"""Decode the tokens that continue a prompt.

Invariants
- The pieces of a stream, joined, are the text of prompt and continuation without the text of the prompt. So a blank
  between them is kept, and a real U+FFFD, too.
- A piece never ends inside a character.
- Each token is decoded with the few before it, so the cost is linear in the number of tokens.

>>> from fedmem.anchor.tokenizer import train_tokenizer
>>> tokenizer = train_tokenizer(["one two"], vocab_size=300)
>>> stream = ContinuationDecoder(tokenizer, tokenizer.encode("one").ids)
>>> "".join(stream.add(token) for token in tokenizer.encode(" two").ids) + stream.finish()
' two'
"""

import re
from collections.abc import Sequence

from tokenizers import Tokenizer

from fedmem.anchor.tokenizer import special_tokens

_UNFINISHED = "\ufffd"  # a tokenizer gives it for a character whose last bytes are not yet there
_BYTE = re.compile("<0x[0-9A-F]{2}>")  # such tokens are decoded together, up to the next token of another kind


class ContinuationDecoder:
    """A stream of tokens that becomes pieces of text.

    Args:
        tokenizer: of any anchor.
        prompt: the tokens before the stream.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer, self._special = tokenizer, frozenset(special_tokens(tokenizer).values())
        self._ids = list(prompt)  # tokens whose text was returned, then tokens that wait
        self._waiting = 0
        self._returned: str = tokenizer.decode(self._ids)

    def add(self, token: int) -> str:
        """Add a token, and return the text that is complete with it; empty if a character is not.

        Args:
            token: the next token of the continuation.
        """
        self._ids.append(token)
        self._waiting += 1
        # A special token is left out, so the bytes before it and after it belong together.
        if token in self._special or _BYTE.fullmatch(self._tokenizer.id_to_token(token) or ""):
            return ""
        text: str = self._tokenizer.decode(self._ids)
        if text.endswith(_UNFINISHED):
            return ""
        piece = text[len(self._returned) :]
        self._forget(text)
        return piece

    def finish(self) -> str:
        """Return the text that waits, at the end of the stream."""
        text: str = self._tokenizer.decode(self._ids)
        return text[len(self._returned) :]

    def _forget(self, text: str) -> None:
        """Keep only the newest tokens, but more than blanks, since a tokenizer drops them at the start of a text."""
        newest = self._ids[-self._waiting :]
        newest_text = self._tokenizer.decode(newest)
        is_enough = bool(newest_text.strip())
        self._ids, self._returned = (newest, newest_text) if is_enough else (self._ids, text)
        self._waiting = 0


def decode_continuation(tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """Return the text of a continuation: that of prompt and continuation, without that of the prompt.

    Args:
        tokenizer: of any anchor.
        prompt: the tokens before it.
        ids: the tokens of the continuation.
    """
    text: str = tokenizer.decode([*prompt, *ids])
    return text[len(tokenizer.decode(list(prompt))) :]
