"""Random ids: 32 hex digits that say nothing about what they name.

>>> len(new_id())
32
"""

import secrets


def new_id() -> str:
    """A fresh id of 128 random bits."""
    return secrets.token_hex(16)
