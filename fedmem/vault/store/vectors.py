"""The vectors of all records, decrypted once for each opening, for exact search.

Invariants
- The vectors lie in one array of this process. It is overwritten with zeros when the vault is closed, when the process
  notices an erasure, and in a forked child. Nothing of it is written to a file.
- A record that another process added is read before the next search. A record without a key is not found.
- Search is exact: the dot product with every vector of the same width.

>>> index = VectorIndex()
>>> index.add("a", np.array([1, 0], np.float32)); index.add("b", np.array([0, 1], np.float32))
>>> index.nearest(np.array([0.2, 0.9], np.float32), k=1)
[('b', 0.8999999761581421)]
"""

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]
_FIRST_ROWS = 256


class VectorIndex:
    """Vectors by record id, in one growing array for each width.

    Attributes:
        last_row: number of the last database row that was added; 0 before the first.
    """

    last_row: int
    _ids: dict[int, list[str]]
    _rows: dict[int, Vector]

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.last_row, self._ids, self._rows = 0, {}, {}

    @property
    def widths(self) -> set[int]:
        """The widths of the vectors."""
        return set(self._ids)

    def add(self, record_id: str, vector: Vector) -> None:
        """Add a copy of a vector.

        Args:
            record_id: id of the record.
            vector: float32 [dim].
        """
        width = len(vector)
        ids = self._ids.setdefault(width, [])
        rows = self._rows.get(width)
        if rows is None or len(ids) == len(rows):
            self._rows[width] = rows = _grown(rows, width)
        rows[len(ids)] = vector
        ids.append(record_id)

    def nearest(self, query: Vector, k: int) -> list[tuple[str, float]]:
        """Return the ids nearest to a query with their dot products, best first; ties by id.

        Args:
            query: float32 [dim]; vectors of another width are left out.
            k: the greatest number of ids.
        """
        ids = self._ids.get(len(query), [])
        if not ids or k <= 0:
            return []
        scores = self._rows[len(query)][: len(ids)] @ query
        k = min(k, len(ids))
        least = np.partition(scores, len(ids) - k)[len(ids) - k]
        best = [(ids[i], float(scores[i])) for i in np.flatnonzero(scores >= least)]
        return sorted(best, key=lambda item: (-item[1], item[0]))[:k]

    def wipe(self) -> None:
        """Overwrite all vectors and forget the ids."""
        for rows in self._rows.values():
            rows.fill(0)
        self._clear()


def _grown(rows: Vector | None, width: int) -> Vector:
    """Return an array of twice the rows with the same content, and overwrite the old one."""
    larger = np.zeros((_FIRST_ROWS if rows is None else 2 * len(rows), width), np.float32)
    if rows is not None:
        larger[: len(rows)] = rows
        rows.fill(0)
    return larger
