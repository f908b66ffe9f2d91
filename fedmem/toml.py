"""TOML files as typed, frozen values. Policies, scenarios and terms are read here.

Invariants
- An unknown key, a missing key, a wrong type or a number out of range is a UsageError.
- Nothing is converted, except an integer where a float is expected.
- An error names the file, the place in it, what is wrong and what to do. It may quote a name from the file, so this
  module reads public files only.

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
    """A table of a TOML file. A subclass defines its keys, their types and their ranges."""


def one_of(names: Iterable[str]) -> Meta:
    """Return the constraint for a text that must be one of several names. Its error lists them.

    Args:
        names: the allowed texts.
    """
    return Meta(pattern=rf"\A({'|'.join(map(re.escape, names))})\Z")


def parse(data: bytes, where: str) -> dict[str, Any]:
    """Parse a TOML file.

    Args:
        data: The file's bytes, UTF-8.
        where: Name of the file, for errors.

    Returns:
        The top table, not validated.

    Raises:
        UsageError: The bytes are not valid TOML.
    """
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{where} is not valid TOML: {error}. Correct the file.") from error


def validated(values: Mapping[str, Any], kind: type[Kind], where: str, advice: str = "Correct it there.") -> Kind:
    """Convert a parsed table, or its JSON form, to `kind`.

    Args:
        values: The table.
        kind: A subclass of TomlTable.
        where: Name of the file and place of the table in it, for errors.
        advice: Sentence in the error that says what to do.

    Returns:
        The value of type `kind`.

    Raises:
        UsageError: A key is missing or unknown, or a value has a wrong type or is out of range.
    """
    try:
        return convert(values, kind, strict=True)
    except (ValidationError, RecursionError) as error:
        # The library writes a path as `$.bank.widths[0]`, with $ for the table itself.
        problem = str(error).replace(" - at ", " at ").replace("`$.", "`")
        raise UsageError(f"{where}: {problem}. {advice}") from None
