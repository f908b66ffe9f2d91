"""Storage: durable files, locks, canonical bytes, the hash-chained log and the two-slot register.

Invariants
- This room knows nothing of vaults, memories or federations, and imports no other room.
- Importing any module of it on an unsupported operating system is a UsageError that names it.
- Every fsync of the package is asked for here, but for the working set that trains a level on disk.
"""

from fedmem.platforms import require_supported

require_supported()
