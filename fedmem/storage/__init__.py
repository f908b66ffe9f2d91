"""Storage: durable files, locks, canonical bytes, the hash-chained log and the two-slot register.

Invariants
- This room does not depend on vaults, memories or federations. It imports no other room.
- On an unsupported operating system, importing any module of this room raises a UsageError that names the system.
- Every fsync of the package is called here, except for the working set that trains a level on disk.
"""

from fedmem.platforms import require_supported

require_supported()
