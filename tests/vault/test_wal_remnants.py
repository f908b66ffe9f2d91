"""Copies of moved cells: found in the log where SQLite leaves them, and seldom seen where it does not."""

import random
import sqlite3
from pathlib import Path

import pytest

from fedmem.vault.store.wal_remnants import has_moved_cells

PIECE = 12


class Table:
    """A table of rows of random bytes in a file of its own; its log is empty between steps."""

    def __init__(self, path: Path, chance: random.Random) -> None:
        self.path, self.chance = path, chance
        self.connection = sqlite3.connect(path, isolation_level=None)
        for setting in ("journal_mode=WAL", "secure_delete=ON", "wal_autocheckpoint=0"):
            self.connection.execute(f"PRAGMA {setting}")
        self.connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, cell BLOB)")
        size = chance.choice([120, 300, 600, 900, 1500, 3000])
        sizes = [chance.randint(size // 2, size) for _ in range(chance.choice([30, 100, 200]))]
        self.all = {number: chance.randbytes(size) for number, size in enumerate(sizes)}
        self.left = set(self.all)
        self.change("INSERT INTO t VALUES (?, ?)", list(self.all.items()))
        self.checkpoint()

    def change(self, statement: str, rows: list[tuple[object, ...]]) -> bool:
        """One transaction; whether its log says that cells moved."""
        self.connection.execute("BEGIN")
        self.connection.executemany(statement, rows)
        self.connection.execute("COMMIT")
        return has_moved_cells(Path(f"{self.path}-wal").read_bytes())

    def checkpoint(self) -> None:
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def delete(self, count: int) -> bool:
        doomed = self.chance.sample(sorted(self.left), min(count, len(self.left)))
        self.left -= set(doomed)
        return self.change("DELETE FROM t WHERE id = ?", [(number,) for number in doomed])

    def copies(self) -> bool:
        """The slow obvious way: whether a piece of any row ever written is in the file more often than it should."""
        data = self.path.read_bytes()
        pieces = [(cell[at : at + PIECE], number) for number, cell in self.all.items()
                  for at in range(0, len(cell) - PIECE, 60)]  # fmt: skip
        return any(data.count(piece) > (number in self.left) for piece, number in pieces)


def test_it_agrees_with_a_search_for_every_row_ever_written(tmp_path: Path) -> None:
    """What it does not announce is not there, as long as each announcement is answered with a rebuild."""
    chance, seen = random.Random(1), []
    for trial in range(12):
        table = Table(tmp_path / f"{trial}.db", chance)
        for _ in range(4):
            said = table.delete(chance.choice([1, 3, len(table.left) // 3, len(table.left) // 2]))
            table.checkpoint()
            seen.append((said, table.copies()))
            if said:
                table.connection.execute("VACUUM")
                table.checkpoint()
        table.connection.close()
    assert (False, True) not in seen
    assert (True, True) in seen  # SQLite does leave copies
    assert seen.count((True, False)) < len(seen) / 5  # and is not suspected without cause


@pytest.mark.parametrize("log", [b"", b"\x37\x7f\x06\x82" + bytes(28), bytes(20)])
def test_an_empty_log(log: bytes) -> None:
    assert not has_moved_cells(log)
