"""Canonical JSON, which encodes a value as exactly one byte string, and its SHA-256.

Invariants
- Equal values give equal bytes: keys sorted, no spaces, UTF-8, no NaN or infinity.

>>> canonical_json({"b": 1, "a": [True, None]})
b'{"a":[true,null],"b":1}'
>>> digest(b"")[:8]
'e3b0c442'
"""

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> bytes:
    """Encode `value` as canonical JSON.

    Args:
        value: dicts with string keys, lists, strings, numbers, booleans and None.

    Returns:
        UTF-8 bytes.

    Raises:
        ValueError: `value` holds NaN or infinity, or text that is not valid Unicode.
        TypeError: JSON cannot represent `value`.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: Any) -> str:
    """Return the SHA-256 of `value` as 64 hex digits: of bytes as they are, of anything else as canonical JSON.

    Args:
        value: bytes, or a value that `canonical_json` encodes.
    """
    return hashlib.sha256(value if isinstance(value, bytes) else canonical_json(value)).hexdigest()
