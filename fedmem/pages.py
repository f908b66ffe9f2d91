"""HTML pages without external resources, rendered from the templates in `templates/`.

Invariants
- A page has no script, link or external resource, and its content security policy forbids them (`base.html.j2`).
- Every value is escaped, except `Markup` of our own plots.
- Control characters and characters that change the text direction are shown as `?`.
- None is shown as `not stated`. A name that a template uses and the caller does not pass is an error.
- The same values give the same page.

>>> ENVIRONMENT.from_string("{{ value }}, {{ nothing }}").render(value="<b>\\u202e", nothing=None)
'&lt;b&gt;?, not stated'
"""

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fedmem import __version__

FOLDER = Path(__file__).with_name("templates")


class Cell(str):
    """The text of a table cell. `mood` is empty, `good` or `bad`."""

    mood: str

    def __new__(cls, text: str, mood: str = "") -> "Cell":
        """Return the text with its mood."""
        cell = super().__new__(cls, text)
        cell.mood = mood
        return cell


def printable(value: Any) -> str:
    """Return a value as the text that a page shows, not yet escaped.

    Args:
        value: any value; None gives "not stated", and Markup is returned unchanged.
    """
    if isinstance(value, Markup):
        return value
    text = "not stated" if value is None else str(value)
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(FOLDER),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    finalize=printable,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
ENVIRONMENT.globals["version"] = __version__


def rendered(template: str, **values: Any) -> str:
    """Render a page.

    Args:
        template: Name of a file in `templates/`.
        values: Values of the variables that the template uses.

    Returns:
        The page, with every value escaped.
    """
    return ENVIRONMENT.get_template(template).render(values)
