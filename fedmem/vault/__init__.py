"""The vault: sealed records, private blocks and ledger of one subject on one device.

Invariants
- Importing any module of this package on an unsupported operating system is a UsageError that names it.
"""

from fedmem.platforms import require_supported

require_supported()
