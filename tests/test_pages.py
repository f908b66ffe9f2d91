"""Pages: every value is escaped in every template, and a name that is missing is an error."""

import jinja2
import pytest
from markupsafe import Markup

from fedmem.pages import ENVIRONMENT, FOLDER, Cell, printable, rendered

EVIL = "<script>\"'&\x1b\u202e\ud800"


def test_no_template_marks_a_value_as_safe_or_switches_escaping_off() -> None:
    for path in FOLDER.glob("*.j2"):
        text = path.read_text(encoding="utf-8")
        assert "safe" not in text.replace("unsafe_no_dp", "").replace("unsafe-inline", ""), path.name
        assert "autoescape" not in text, path.name


def test_the_table_escapes_every_cell_heading_and_class() -> None:
    table = ENVIRONMENT.get_template("parts.html.j2").module.table
    made = table([EVIL], [[EVIL, Cell(EVIL, EVIL)], [None, EVIL * 9]], (1,), EVIL)
    assert isinstance(made, Markup)
    assert "<script" not in made
    assert not set(made) & {"\x1b", "\u202e", "\ud800"}
    assert made.count("&lt;script&gt;&#34;&#39;&amp;???") == 1 + 1 + 1 + 2 + 9
    assert "not stated" in made


def test_a_missing_name_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        rendered("run.html.j2", name="a run")


def test_only_markup_stays_as_it_is() -> None:
    assert printable(Markup("<svg>\u202e")) == "<svg>\u202e"
    assert printable(Cell("a\u202eb\n")) == "a?b\n"
    assert (printable(None), printable(0), printable("")) == ("not stated", "0", "")
