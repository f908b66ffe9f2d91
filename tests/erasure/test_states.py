"""The states: completed only from in progress, and final."""

import itertools

import pytest

from fedmem.erasure import states
from fedmem.errors import UsageError

ALL = ["pending", "in_progress", "completed", "partial", "failed", "cancelled"]
ALLOWED = {
    ("pending", "in_progress"), ("pending", "failed"), ("pending", "cancelled"),
    ("in_progress", "in_progress"), ("in_progress", "completed"), ("in_progress", "partial"),
    ("in_progress", "failed"), ("partial", "in_progress"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new"), [*itertools.product(ALL, ALL)])
def test_only_these_may_follow(old: str, new: str) -> None:
    assert states.may_follow(old, new) == ((old, new) in ALLOWED)
    if (old, new) not in ALLOWED:
        with pytest.raises(UsageError):
            states.check(old, new)


def test_unfinished_is_what_can_go_on() -> None:
    assert set(states.UNFINISHED) == {state for state in ALL if states.may_follow(state, "in_progress")}
