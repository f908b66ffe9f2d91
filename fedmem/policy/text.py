"""Check a text of a record, query or prompt before anything reads it.

Invariants
- A text is a `str` without lone surrogates, of at most `MOST_BYTES` bytes in UTF-8.
- A text that is too long is refused in constant time. No error holds a part of the text.

>>> check_text("The river runs.")
'The river runs.'
"""

from fedmem.errors import UsageError

MOST_BYTES = 2**20


def check_text(text: object) -> str:
    """Return a text as it is, if it is one.

    Args:
        text: the text of a record, a query or a prompt.

    Raises:
        UsageError: it is no `str`, it is longer than `MOST_BYTES` bytes in UTF-8, or it holds a lone surrogate.
    """
    if not isinstance(text, str):
        raise UsageError(f"A text must be a str, not {type(text).__name__}; decode bytes first.")
    if len(text) > MOST_BYTES or len(_utf8(text)) > MOST_BYTES:
        raise UsageError(f"A text has at most {MOST_BYTES:,} bytes in UTF-8. Split it into several texts.")
    return text


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise UsageError(
            "A text holds half of a surrogate pair, which is no character. Decode its source as UTF-8 or UTF-16 again."
        ) from None
