"""Typed errors, split by who must act. Each has the exit code of the command line.

Invariants
- The message says what happened, to what, and what to do next.
- The message never holds text, names or numbers that depend on private data.

>>> NothingMatched("No block named b7. `fedmem block list` shows what there is.").exit_code
3
"""


class FedmemError(Exception):
    """The base class of every error that fedmem raises on purpose."""

    exit_code = 1


class UsageError(FedmemError):
    """A wrong request: a bad argument, scenario or input file."""

    exit_code = 2


class NothingMatched(FedmemError):
    """A well-formed request for something that does not exist."""

    exit_code = 3


class Refused(FedmemError):
    """A request that a policy, the boundary, a budget or a missing confirmation forbids."""

    exit_code = 4


class BoundaryViolation(Refused):
    """A message with content that the wire schema does not name (I2)."""


class BudgetExceeded(Refused):
    """A training run that would exceed its privacy budget. Nothing was trained."""


class PartialErasure(FedmemError):
    """An erasure that could not finish. It is recorded as `partial` and can be resumed (I5)."""

    exit_code = 5


class VerificationFailed(FedmemError):
    """A signature, digest, ciphertext or ledger chain that does not verify."""

    exit_code = 6


class Busy(FedmemError):
    """A lock that another process holds."""

    exit_code = 7


class KeystoreError(FedmemError):
    """A missing key, or a passphrase that does not open it."""

    exit_code = 8


class VersionMismatch(FedmemError):
    """Two things of different versions that must match: release, format or protocol."""

    exit_code = 9


class RemoteError(FedmemError):
    """A failure of the other side of a federation, or no connection to it."""

    exit_code = 10


class StorageError(FedmemError):
    """A disk that is full, read-only or failing. The old state is intact."""

    exit_code = 11


class QualityGateFailed(FedmemError):
    """A quality or privacy gate that was not passed."""

    exit_code = 12
