"""The states of an erasure and their transitions. Pure.

Invariants
- `completed` is final and is reached only from `in_progress`, after a clean rescan.
- An unfinished erasure is `pending`, `in_progress` or `partial`, and resumes (I5).
- `failed` means that nothing was destroyed: the old state is whole.

>>> may_follow("in_progress", "completed"), may_follow("pending", "completed")
(True, False)
"""

from fedmem.errors import UsageError

PENDING, IN_PROGRESS, COMPLETED = "pending", "in_progress", "completed"
PARTIAL, FAILED, CANCELLED = "partial", "failed", "cancelled"
UNFINISHED = (PENDING, IN_PROGRESS, PARTIAL)

_NEXT: dict[str, frozenset[str]] = {
    PENDING: frozenset({IN_PROGRESS, FAILED, CANCELLED}),
    IN_PROGRESS: frozenset({IN_PROGRESS, COMPLETED, PARTIAL, FAILED}),
    PARTIAL: frozenset({IN_PROGRESS}),
    COMPLETED: frozenset(),
    FAILED: frozenset(),
    CANCELLED: frozenset(),
}


def may_follow(old: str, new: str) -> bool:
    """Return True if an erasure may change from state `old` to `new`.

    Args:
        old: the present state.
        new: the next state.
    """
    return new in _NEXT[old]


def check(old: str, new: str) -> None:
    """Check that an erasure may change from state `old` to `new`.

    Args:
        old: the present state.
        new: the next state.

    Raises:
        UsageError: it may not.
    """
    if not may_follow(old, new):
        raise UsageError(f"An erasure that is {old} cannot become {new}. `fedmem erase status` shows where it stands.")
