"""Distribute a mean width over the layers, so that placements are compared at equal size [docs/method.md, §2].

Invariants
- All placements of one width have the same total number of rows, and so the same number of parameters.
- Same arguments give the same widths. No width is negative; a width may be 0.

>>> widths(8, 4, "late"), widths(8, 4, "ramp")
((0, 0, 16, 16), (3, 6, 10, 13))
"""

from fedmem.errors import UsageError

PLACEMENTS = ("uniform", "late", "early", "middle", "ramp")


def widths(width: int, layers: int, how: str) -> tuple[int, ...]:
    """Return the width of each layer.

    Args:
        width: mean width of a layer, at least 0.
        layers: number of layers, at least 1.
        how: `uniform`, `late`, `early` or `middle` (one half of the layers only), or `ramp` (rising with depth).

    Raises:
        UsageError: the placement does not exist, the width is negative, or there is no layer.
    """
    if how not in PLACEMENTS or width < 0 or layers < 1:
        raise UsageError(
            f"Choose a placement of {', '.join(PLACEMENTS)}, a width of at least 0, and at least one layer."
        )
    half = (layers + 1) // 2
    start = {"late": layers - half, "early": 0, "middle": (layers - half) // 2}
    if how in start:
        return _divided(width * layers, [int(start[how] <= layer < start[how] + half) for layer in range(layers)])
    return _divided(width * layers, [1 if how == "uniform" else layer + 1 for layer in range(layers)])


def _divided(rows: int, weights: list[int]) -> tuple[int, ...]:
    """Divide `rows` in proportion to `weights`.

    Rounded shares come first. The largest remainders then get one more row each, later layers first.
    """
    total = sum(weights)
    shares = [rows * weight // total for weight in weights]
    order = sorted(range(len(weights)), key=lambda layer: (rows * weights[layer] % total, layer), reverse=True)
    for layer in order[: rows - sum(shares)]:
        shares[layer] += 1
    return tuple(shares)
