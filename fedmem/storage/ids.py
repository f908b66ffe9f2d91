"""Random ids of 32 hex digits; an id reveals nothing about its object.

>>> len(new_id())
32
"""

import secrets


def new_id() -> str:
    """Return a new id of 128 random bits."""
    return secrets.token_hex(16)
