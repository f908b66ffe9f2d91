"""Placements of one width are equal in size and differ in where the rows lie."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmem.cli.bank import PLACEMENTS as OFFERED
from fedmem.errors import UsageError
from fedmem.memory.placement import PLACEMENTS, widths


@given(st.integers(0, 300), st.integers(1, 40), st.sampled_from(PLACEMENTS))
def test_every_placement_has_the_same_rows(width: int, layers: int, how: str) -> None:
    found = widths(width, layers, how)
    assert len(found) == layers
    assert sum(found) == width * layers
    assert min(found) >= 0


def test_where_the_rows_lie() -> None:
    assert widths(6, 6, "uniform") == (6,) * 6
    assert widths(6, 6, "late") == (0, 0, 0, 12, 12, 12)
    assert widths(6, 6, "early") == (12, 12, 12, 0, 0, 0)
    assert widths(6, 8, "middle") == (0, 0, 12, 12, 12, 12, 0, 0)
    ramp = widths(70, 6, "ramp")
    assert ramp == (20, 40, 60, 80, 100, 120)
    assert len({after - before for before, after in pairwise(ramp)}) == 1


@pytest.mark.parametrize(("width", "layers", "how"), [(4, 4, "random"), (-1, 4, "late"), (4, 0, "late")])
def test_what_is_no_placement_is_refused(width: int, layers: int, how: str) -> None:
    with pytest.raises(UsageError, match="placement"):
        widths(width, layers, how)


def test_the_command_line_offers_all() -> None:
    assert OFFERED == PLACEMENTS
