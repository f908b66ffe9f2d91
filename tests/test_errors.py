"""Typed errors: one exit code for each kind of cause, as docs/design.md lists them."""

from pathlib import Path

from fedmem import errors
from fedmem.errors import FedmemError


def kinds() -> list[type[FedmemError]]:
    """The error classes that the module defines, without their base."""
    values = (value for value in vars(errors).values() if isinstance(value, type))
    return [kind for kind in values if issubclass(kind, FedmemError) and kind is not FedmemError]


def test_direct_kinds_have_codes_of_their_own_and_others_those_of_their_base() -> None:
    direct = [kind for kind in kinds() if kind.__base__ is FedmemError]
    codes = [kind.exit_code for kind in direct]
    assert sorted(codes) == list(range(2, 13))
    assert FedmemError.exit_code == 1
    assert all(kind.exit_code == kind.__base__.exit_code for kind in kinds() if kind not in direct)


def test_the_design_names_each_code() -> None:
    text = (Path(__file__).parents[1] / "docs/design.md").read_text("utf-8")
    line = next(line for line in text.splitlines() if line.startswith("- Exit codes:"))
    assert all(f" {code} " in line for code in range(13))
