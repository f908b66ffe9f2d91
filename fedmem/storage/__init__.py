"""Storage: durable files, locks, canonical bytes, the hash-chained log and the two-slot register.

Invariants
- This room knows nothing of vaults, memories or federations, and imports no other room.
- Every fsync of the package is asked for here, but for the working set that trains a level on disk.
"""
