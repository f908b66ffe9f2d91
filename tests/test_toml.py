"""TOML files as typed values: what is refused, and where an error says that it is."""

from typing import Annotated

import pytest
from msgspec import Meta

from fedmem.errors import UsageError
from fedmem.toml import TomlTable, one_of, parse, validated


class Spice(TomlTable, frozen=True):
    name: Annotated[str, one_of(("salt", "a.b"))]
    grams: Annotated[float, Meta(gt=0)] = 1.0


class Soup(TomlTable, frozen=True):
    litres: float
    spices: list[Spice] = []  # noqa: RUF012 -- msgspec copies it


def test_a_table_becomes_a_value_and_whole_numbers_become_floats() -> None:
    data = b'litres = 2\n[[spices]]\nname = "salt"\n[[spices]]\nname = "a.b"\ngrams = 3'
    soup = validated(parse(data, "soup.toml"), Soup, "soup.toml")
    assert soup == Soup(2.0, [Spice("salt"), Spice("a.b", 3.0)])
    assert type(soup.litres) is float


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "`litres`"),
        ('litres = "2"', "got `str` at `litres`"),
        ("litres = true", "got `bool` at `litres`"),
        ("litres = 2020-01-01", "got `date` at `litres`"),
        ("litres = 1\nliters = 1", "unknown field `liters`"),
        ("litres = 1\nspices = {}", "at `spices`"),
        ("litres = 1\n[[spices]]\nname = 'pepper'", r"salt\|a.* at `spices\[0\].name`"),
        ("litres = 1\n[[spices]]\nname = 'axb'", r"at `spices\[0\].name`"),
        ('litres = 1\n[[spices]]\nname = "salt\\n"', r"at `spices\[0\].name`"),
        ("litres = 1\n[[spices]]\nname = 'salt'\ngrams = nan", r"> 0.0 at `spices\[0\].grams`"),
        ("litres = 1\n[[spices]]\nname = 'salt'\ngram = 1", r"unknown field `gram` at `spices\[0\]`"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=f"^soup.toml: .*{problem}.* Ask the cook.$"):
        validated(parse(text.encode(), "soup.toml"), Soup, "soup.toml", "Ask the cook.")


@pytest.mark.parametrize("data", [b"litres", b"litres = \xff", b"litres = " + b"[" * 5000 + b"]" * 5000])
def test_what_is_no_toml_is_refused(data: bytes) -> None:
    with pytest.raises(UsageError, match=r"^soup.toml is not valid TOML"):
        parse(data, "soup.toml")
