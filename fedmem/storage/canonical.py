"""One byte string per value: canonical JSON and its SHA-256.

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
    """Encode `value` as canonical JSON. Raises ValueError on NaN or infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: Any) -> str:
    """SHA-256 in hex of `value`: of the bytes themselves, else of its canonical JSON."""
    return hashlib.sha256(value if isinstance(value, bytes) else canonical_json(value)).hexdigest()
