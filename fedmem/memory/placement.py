"""Widths by layer for one mean width, so that placements are compared at equal size [docs/method.md, §2].

Invariants
- Every placement of one width has the same number of rows in all, so the same number of parameters.
- Same arguments, same widths; no width is negative, and a layer may have none.

>>> widths(8, 4, "late"), widths(8, 4, "ramp")
((0, 0, 16, 16), (3, 6, 10, 13))
"""

from fedmem.errors import UsageError

PLACEMENTS = ("uniform", "late", "early", "middle", "ramp")


def widths(width: int, layers: int, how: str) -> tuple[int, ...]:
    """Widths by layer with mean `width`: everywhere alike, in one half of the layers only, or rising with depth.

    Raises UsageError for a placement that does not exist, a negative width, or no layer.
    """
    if how not in PLACEMENTS or width < 0 or layers < 1:
        raise UsageError(f"A placement is one of {', '.join(PLACEMENTS)}, with a width of 0 or more and a layer.")
    half = (layers + 1) // 2
    first = {"late": layers - half, "early": 0, "middle": (layers - half) // 2}
    if how in first:
        return _shared(width * layers, [int(first[how] <= layer < first[how] + half) for layer in range(layers)])
    return _shared(width * layers, [1 if how == "uniform" else layer + 1 for layer in range(layers)])


def _shared(rows: int, weights: list[int]) -> tuple[int, ...]:
    """`rows` shared out by weight: whole parts first, then one each to the largest remainders, later layers first."""
    total = sum(weights)
    found = [rows * weight // total for weight in weights]
    order = sorted(range(len(weights)), key=lambda layer: (rows * weights[layer] % total, layer), reverse=True)
    for layer in order[: rows - sum(found)]:
        found[layer] += 1
    return tuple(found)
