"""Pages for people: one HTML file that loads nothing, made of escaped values.

Invariants
- A page has no script, link or outside resource, and its own content policy forbids them.
- Every value is escaped; control and direction-changing characters are shown as `?`.
- The same values give the same page.

>>> text("<b>\\u202e")
'&lt;b&gt;?'
>>> table(("Kind", "Items"), [("record", 2)]).count("<td>")
2
"""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

OPEN_UP_TO = 40  # rows that a page shows unfolded
STYLE = """
:root { color-scheme: light }
body { font: 15px/1.45 "Liberation Sans", Arial, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 52rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 0 .2rem } h2 { font-size: 1.1rem; margin: 1.4rem 0 .4rem }
p { margin: .4rem 0 } ul { margin: .4rem 0; padding-left: 1.2rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .25rem .5rem; border-bottom: 1px solid #ccc }
th { font-weight: 600 } tbody th { width: 14rem }
code, pre, td.id { font: 12px/1.4 "Liberation Mono", Consolas, monospace; overflow-wrap: anywhere }
pre { white-space: pre-wrap; background: #f5f5f5; padding: .6rem; margin: .4rem 0 }
svg { display: block; max-width: 100%; height: auto; margin: .6rem 0 }
summary { cursor: pointer } .bad { font-weight: 700; color: #a00000 }
@media print { body { margin: 0; max-width: none; font-size: 10.5pt } h2 { break-after: avoid }
  tr, li, svg { break-inside: avoid } pre { background: none; border: 1px solid #ccc } }
@page { margin: 18mm }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


class Bad(str):
    """A value that a table shows as an alarm."""


def document(title: str, parts: Iterable[str]) -> str:
    """The whole page; `parts` are markup already, the title is not."""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n"
        "</html>\n"
    )


def section(title: str, *content: str) -> list[str]:
    """A heading and what stands below it."""
    return [f"<h2>{text(title)}</h2>", *content]


def folded(title: str, content: str, rows: int) -> str:
    """`content` under a title that unfolds it; open where it has few rows."""
    shown = " open" if rows <= OPEN_UP_TO else ""
    return f"<details{shown}><summary>{text(title)}</summary>\n{content}</details>"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table with a row of headings."""
    head = "".join(f"<th>{text(name)}</th>" for name in columns)
    body = "\n".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def pairs(rows: Iterable[tuple[str, Any]]) -> str:
    """Names and values in two columns."""
    body = "\n".join(f"<tr><th>{text(name)}</th>{_cell(value)}</tr>" for name, value in rows)
    return f"<table><tbody>\n{body}\n</tbody></table>"


def lines(values: Iterable[Any]) -> str:
    """A list."""
    return "<ul>\n" + "\n".join(f"<li>{text(value)}</li>" for value in values) + "\n</ul>"


def text(value: Any) -> str:
    """`value` escaped for any place in the page."""
    return escape(plain(value))


def plain(value: Any) -> str:
    """`value` as a person reads it, not escaped."""
    said = "not stated" if value is None or value == "" else str(value)
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in said)


def _cell(value: Any) -> str:
    said = text(value)
    kind = ' class="bad"' if isinstance(value, Bad) else ' class="id"' if len(said) >= 32 and " " not in said else ""
    return f"<td{kind}>{said}</td>"
