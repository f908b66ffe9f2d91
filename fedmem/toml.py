"""TOML files as typed, frozen values: the one way to read what a person wrote into a policy or a scenario.

Invariants
- An unknown key, a missing key, another type or a number out of its range is a UsageError; nothing is converted but
  whole numbers where a float is due.
- An error names the file, the place in it, what is wrong and what to do. It may quote a name that the file holds, so
  only public files are read here.

>>> from typing import Annotated
>>> class Soup(TomlTable, frozen=True):
...     litres: Annotated[float, Meta(gt=0)]
>>> validated(parse(b"litres = 2", "soup.toml"), Soup, "soup.toml")
Soup(litres=2.0)
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from msgspec import Meta, Struct, ValidationError, convert

from fedmem.errors import UsageError

Kind = TypeVar("Kind")


class TomlTable(Struct, frozen=True, forbid_unknown_fields=True):
    """A table of a TOML file; a subclass names its keys, their types and their ranges."""


def one_of(names: Iterable[str]) -> Meta:
    """Return the constraint of a text that must be one of `names`; its error lists them."""
    return Meta(pattern=rf"\A({'|'.join(map(re.escape, names))})\Z")


def parse(data: bytes, where: str) -> dict[str, Any]:
    """Parse a TOML file.

    Args:
        data: The file's bytes, UTF-8.
        where: The file's name for errors.

    Returns:
        Its top table, not validated.

    Raises:
        UsageError: The bytes are no TOML.
    """
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{where} is not valid TOML: {error}. Correct the file.") from error


def validated(values: Mapping[str, Any], kind: type[Kind], where: str, advice: str = "Correct it there.") -> Kind:
    """Convert a parsed table, or its JSON form, to `kind`.

    Args:
        values: The table.
        kind: A TomlTable.
        where: The file's name for errors, with the place of the table in it.
        advice: What to do about an error.

    Returns:
        The value of type `kind`.

    Raises:
        UsageError: A key is missing or unknown, or a value has another type or is out of its range.
    """
    try:
        return convert(values, kind, strict=True)
    except (ValidationError, RecursionError) as error:
        # The library writes a path as `$.bank.widths[0]`, with $ for the table itself.
        problem = str(error).replace(" - at ", " at ").replace("`$.", "`")
        raise UsageError(f"{where}: {problem}. {advice}") from None
