"""Draw the rooms of fedmem and their imports: `python docs/house.py` writes docs/house.svg, `--check` compares it.

Invariants
- Imports are read from the source with `ast`; no module of fedmem is loaded.
- Layers are those of the import contract in pyproject.toml; a room that it does not name is an error.
- Rooms of one layer that import each other stand in rows of their own, so that arrows point down.
- An arrow is left out where a longer way leads to the same room; `<desc>` of the picture lists every import.
- A circle of imports is drawn, dashed: it is a fault of the house.
- The same sources give the same bytes.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "house.svg"
WIDTH, ROW, BOX, HEIGHT = 900, 92, 118, 40  # px: picture, distance of rows, box
ASIDE = 50  # px: rows are moved aside in turns, so that long arrows meet fewer boxes
SHARED = "errors, paths, toml, pages."
CIRCLE = " Dashed: imports in a circle."

Edges = frozenset[tuple[str, str]]


def layers(pyproject: str, package: str = "fedmem") -> list[list[str]]:
    """Return the rooms of each layer, from the top down, as the import contract names them."""
    contracts = tomllib.loads(pyproject)["tool"]["importlinter"]["contracts"]
    (rows,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    return [[name.strip().removeprefix(f"{package}.") for name in re.split(r"[|:]", row)] for row in rows]


def rooms_of(package: Path) -> list[str]:
    """Return the names of the package's rooms: its folders with Python files in them."""
    return sorted(folder.name for folder in package.iterdir() if any(folder.glob("*.py")))


def imports(source: str, package: str) -> set[str]:
    """Return the rooms, or modules at the top, of `package` that a source imports, inside functions too."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == package:
            modules |= {f"{package}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
    return {name.split(".")[1] for name in modules if name.startswith(f"{package}.")}


def edges_of(package: Path) -> Edges:
    """Return (room, imported room) for every import from one room into another."""
    rooms = rooms_of(package)
    return frozenset(
        (room, target)
        for room in rooms
        for file in (package / room).rglob("*.py")
        for target in imports(file.read_text("utf-8"), package.name)
        if target in rooms and target != room
    )


def reachable(start: str, edges: Edges) -> set[str]:
    """Return the rooms that ways of one or more imports lead to from `start`."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        here = waiting.pop()
        further = {target for source, target in edges if source == here} - seen
        seen |= further
        waiting += further
    return seen


def circular(edges: Edges) -> Edges:
    """Return the edges that lie on a circle."""
    return frozenset((a, b) for a, b in edges if a in reachable(b, edges))


def reduced(edges: Edges) -> Edges:
    """Return the edges without those that a longer way stands for; edges of a circle stay."""
    kept, circle = edges, circular(edges)
    for a, b in sorted(edges - circle):
        if b in reachable(a, kept - {(a, b)}):
            kept -= {(a, b)}
    return kept


def rows_of(order: Iterable[list[str]], edges: Edges) -> list[tuple[int, list[str]]]:
    """Return (layer, rooms) for each row: a layer is split where its rooms import each other without a circle."""
    rows: list[tuple[int, list[str]]] = []
    for number, rooms in enumerate(order):
        rest = list(rooms)
        while rest:
            top = [room for room in rest if not any((other, room) in edges for other in rest)] or rest
            rows.append((number, top))
            rest = [room for room in rest if room not in top]
    return rows


def drawn(order: list[list[str]], edges: Edges) -> str:
    """Return the picture as SVG."""
    rows = rows_of(order, edges)
    places = {
        room: (WIDTH * (i + 1) / (len(rooms) + 1) - ASIDE * (-1) ** row, 50 + ROW * row)
        for row, (_, rooms) in enumerate(rows)
        for i, room in enumerate(rooms)
    }
    height = 50 + ROW * len(rows) + 30
    kept, circle = reduced(edges), circular(edges)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        "<title>Rooms of fedmem and their imports</title>",
        f"<desc>{escape('; '.join(f'{a} → {b}' for a, b in sorted(edges)))}</desc>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#456"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        *(band(number, y) for y, (number, _) in enumerate(rows)),
        *(arrow(a, b, places, kept, dashed=(a, b) in circle) for a, b in sorted(kept)),
        *(box(room, *place) for room, place in places.items()),
        f'<text x="{WIDTH / 2:.0f}" y="{height - 20}" font-size="13" text-anchor="middle" fill="#456">'
        f"Every room may use the modules beside the rooms: {SHARED}{CIRCLE if circle else ''}</text>",
        "</svg>\n",
    ]
    return "\n".join(parts)


def band(layer: int, row: int) -> str:
    """Return the background of a row; layers differ from their neighbours."""
    colour = ("#eef2f6", "#f9fafb")[layer % 2]
    return f'<rect x="0" y="{50 + ROW * row - ROW / 2:.0f}" width="{WIDTH}" height="{ROW}" fill="{colour}"/>'


def box(room: str, x: float, y: float) -> str:
    """Return a room's box and name."""
    return (
        f'<rect x="{x - BOX / 2:.1f}" y="{y - HEIGHT / 2:.1f}" width="{BOX}" height="{HEIGHT}" rx="6" fill="#fff" '
        f'stroke="#456"/><text x="{x:.1f}" y="{y + 5:.1f}" font-size="16" text-anchor="middle">{escape(room)}</text>'
    )


def arrow(a: str, b: str, places: Mapping[str, tuple[float, float]], edges: Edges, *, dashed: bool) -> str:
    """Return a curve from the bottom of `a` to the top of `b`, each end at a place of its own."""
    style = 'stroke="#b50" stroke-dasharray="5 3"' if dashed else 'stroke="#456"'
    below = sorted((places[target][0], target) for source, target in edges if source == a)
    above = sorted((places[source][0], source) for source, target in edges if target == b)
    x1 = places[a][0] + _port([name for _, name in below], b)
    x2 = places[b][0] + _port([name for _, name in above], a)
    y1, y2 = places[a][1] + HEIGHT / 2, places[b][1] - HEIGHT / 2
    bend = (y1 + y2) / 2
    if y1 > y2:  # rooms of one row: an arc above them
        y1, bend = y2, y2 - HEIGHT
    curve = f"M{x1:.1f} {y1:.1f}C{x1:.1f} {bend:.1f} {x2:.1f} {bend:.1f} {x2:.1f} {y2:.1f}"
    return f'<path d="{curve}" fill="none" {style} stroke-width="1.4" marker-end="url(#tip)"/>'


def _port(names: list[str], name: str) -> float:
    return BOX * ((names.index(name) + 1) / (len(names) + 1) - 0.5)


def picture(root: Path = ROOT) -> str:
    """Return the picture of the sources below `root`. Raises ValueError for a room without a layer."""
    order, rooms = layers((root / "pyproject.toml").read_text("utf-8")), rooms_of(root / "fedmem")
    nameless = set(rooms) - {room for row in order for room in row} - {"templates"}
    if nameless:
        raise ValueError(f"The import contract in pyproject.toml names no layer for: {', '.join(sorted(nameless))}.")
    return drawn(order, edges_of(root / "fedmem"))


def main(arguments: list[str]) -> int:
    """Write the picture, or with `--check` return 1 where the one in docs/ is another."""
    if arguments == ["--check"]:
        return int(not PICTURE.is_file() or PICTURE.read_text("utf-8") != picture())
    PICTURE.write_text(picture(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
