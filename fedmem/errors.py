"""Typed errors, split by who must act; each carries the exit code of the command line.

Invariants
- The message says what happened, to what, and what to do next.
- The message never holds text, names or numbers that depend on private data.

>>> NothingMatched("No block named b7. `fedmem block list` shows what there is.").exit_code
3
"""


class FedmemError(Exception):
    """Root of every error that fedmem raises on purpose."""

    exit_code = 1


class UsageError(FedmemError):
    """The request itself is wrong: a bad argument, scenario or input file."""

    exit_code = 2


class NothingMatched(FedmemError):
    """The request is well formed and names nothing that exists."""

    exit_code = 3


class Refused(FedmemError):
    """Policy, boundary, budget or a missing confirmation forbids it."""

    exit_code = 4


class BoundaryViolation(Refused):
    """A message holds something that the wire schema does not name (I2)."""


class BudgetExceeded(Refused):
    """The run would pass its privacy budget; nothing was trained."""


class PartialErasure(FedmemError):
    """An erasure could not finish; it is recorded as `partial` and resumes (I5)."""

    exit_code = 5


class VerificationFailed(FedmemError):
    """A signature, digest, ciphertext or ledger chain does not verify."""

    exit_code = 6


class Busy(FedmemError):
    """Another process holds what this one needs."""

    exit_code = 7


class KeystoreError(FedmemError):
    """A key is missing, or the passphrase does not open it."""

    exit_code = 8


class VersionMismatch(FedmemError):
    """Two things that must belong together do not: release, format or protocol."""

    exit_code = 9


class RemoteError(FedmemError):
    """The other side of a federation failed or could not be reached."""

    exit_code = 10


class StorageError(FedmemError):
    """The disk refused: full, read-only or failing. The old state is whole."""

    exit_code = 11


class QualityGateFailed(FedmemError):
    """A quality or privacy gate did not hold."""

    exit_code = 12
