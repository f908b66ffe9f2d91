"""Policy files: find them, read them strictly, turn them into rules.

Invariants
- A key, kind or number that is not known is a UsageError that names file and key: a misspelt rule never goes unnoticed.
- A name is looked up inside the installed package first, then in `policies/` beside it.
- Every topic has a finite budget: epsilon above 0, delta in (0, 1e-5].
"""

import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import fedmem
from fedmem.errors import UsageError
from fedmem.policy.identifiers import KINDS, Identifiers
from fedmem.policy.rules import (
    LONGEST_PHRASE,
    AllOf,
    AnyOf,
    Keywords,
    Patterns,
    Rule,
    SeedPhrases,
    Unread,
    fold,
)
from fedmem.routing.embedder import Embedder

MAX_DELTA = 1e-5
GRANULARITIES = ("topic", "cluster")
_SCHEMA = "fedmem.policy/1"


@dataclass(frozen=True)
class Topic:
    """A private topic: the DP budget of a record in it, and one block a `topic` or a `cluster` below it."""

    name: str
    epsilon: float
    delta: float
    granularity: str = "topic"


@dataclass(frozen=True)
class Layer:
    """One policy file: its topics, and the rules of those that it places as private."""

    name: str
    topics: Mapping[str, Topic]
    rules: Mapping[str, tuple[Rule, ...]]


class _Table:
    """A TOML table that is read key by key and refuses what nobody asked for."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise UsageError(f"{where} must be a table.")
        self._left, self.where = dict(value), where

    def take(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        value = self._left.pop(key, default)
        if value is None or not isinstance(value, kind) or isinstance(value, bool):
            raise UsageError(f"{self.where}: `{key}` is missing or of the wrong type.")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        values = self.take(key, list)
        if not values or not all(isinstance(value, str) and value.strip() for value in values):
            raise UsageError(f"{self.where}: `{key}` must be a list of texts, not empty.")
        return tuple(values)

    def end(self) -> None:
        if self._left:
            raise UsageError(f"{self.where}: unknown key `{min(self._left)}`. Remove it or correct its spelling.")


def source(name_or_path: str | Path) -> bytes:
    """Bytes of the policy file at a path that ends in .toml, or of the policy of this name."""
    if str(name_or_path).endswith(".toml"):
        try:
            return Path(name_or_path).read_bytes()
        except OSError as error:
            raise UsageError(f"The policy file {name_or_path} cannot be read. Check its path.") from error
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", str(name_or_path)):
        raise UsageError("A policy is named by small letters, digits, - and _, or by the path of a .toml file.")
    beside = Path(str(fedmem.__file__)).parent.parent / "policies"
    for folder in (resources.files("fedmem") / "policies", beside):
        if (found := folder / f"{name_or_path}.toml").is_file():
            return found.read_bytes()
    raise UsageError(f"No policy named {name_or_path}. Name one that exists, or give the path of a .toml file.")


def parse(data: bytes, where: str, embedder: Embedder) -> Layer:
    """Read one policy file. Raises UsageError that names `where` and the key."""
    try:
        top = _Table(tomllib.loads(data.decode()), where)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{where} is not TOML: {error}") from error
    if top.take("schema", str) != _SCHEMA:
        raise UsageError(f"{where}: `schema` must be {_SCHEMA}.")
    name, tables = top.take("name", str), _Table(top.take("topics", dict, {}), f"{where} topics")
    top.end()
    topics, rules = dict[str, Topic](), dict[str, tuple[Rule, ...]]()
    for topic in list(tables._left):
        table = _Table(tables.take(topic, dict), f"{where} topics.{topic}")
        topics[topic] = _topic(topic, table)
        placement, own = table.take("placement", str, "private"), table.take("rules", list, [])
        made = tuple(_rule(_Table(rule, table.where), f"{name}.{topic}", embedder) for rule in own)
        if placement not in ("private", "shared"):
            raise UsageError(f"{table.where}: `placement` must be private or shared.")
        rules[topic] = made if placement == "private" else ()
        table.end()
    return Layer(name, topics, rules)


def _topic(name: str, table: _Table) -> Topic:
    epsilon, delta = (float(table.take(key, (int, float))) for key in ("epsilon", "delta"))
    granularity = table.take("granularity", str, "topic")
    if not (math.isfinite(epsilon) and epsilon > 0 and 0 < delta <= MAX_DELTA):
        raise UsageError(
            f"{table.where}: `epsilon` must be finite and above 0, `delta` above 0 and at most {MAX_DELTA}."
        )
    if granularity not in GRANULARITIES or not re.fullmatch(r"[a-z][a-z0-9_-]{0,31}", name):
        raise UsageError(f"{table.where}: a short lower-case topic name, and granularity topic or cluster, are needed.")
    return Topic(name, epsilon, delta, granularity)


def _rule(table: _Table, prefix: str, embedder: Embedder) -> Rule:
    """One `[[rules]]` entry as a rule, named `<policy>.<topic>.<name or kind>`."""
    kind = table.take("kind", str)
    table.where = f"{table.where} rule {kind}"
    if kind not in _MAKERS:
        raise UsageError(f"{table.where}: `kind` must be one of {', '.join(sorted(_MAKERS))}.")
    rule = _MAKERS[kind](table, f"{prefix}.{table.take('name', str, kind)}", embedder)
    table.end()
    return rule


def _keywords(table: _Table, name: str, embedder: Embedder) -> Rule:
    phrases, at_least = [fold(word).words for word in table.strings("words")], table.take("at_least", int, 1)
    if not all(1 <= len(phrase) <= LONGEST_PHRASE for phrase in phrases) or not 1 <= at_least <= len(phrases):
        raise UsageError(f"{table.where}: phrases of one to three words, and `at_least` within their number.")
    return Keywords(name, frozenset(map(" ".join, phrases)), at_least)


def _patterns(table: _Table, name: str, embedder: Embedder) -> Rule:
    patterns = table.strings("patterns")
    try:
        for pattern in patterns:
            re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{table.where}: a pattern is not a regular expression: {error}") from error
    return Patterns(name, patterns)


def _identifiers(table: _Table, name: str, embedder: Embedder) -> Rule:
    kinds = table.strings("kinds")
    if unknown := set(kinds) - set(KINDS):
        raise UsageError(f"{table.where}: unknown kind {min(unknown)}; known are {', '.join(KINDS)}.")
    return Identifiers(name, kinds)


def _seeds(table: _Table, name: str, embedder: Embedder) -> Rule:
    threshold = float(table.take("threshold", (int, float)))
    if not 0 < threshold < 1:
        raise UsageError(f"{table.where}: `threshold` is a cosine, above 0 and below 1.")
    return SeedPhrases(name, embedder.embed(table.strings("phrases")), threshold)


def _unread(table: _Table, name: str, embedder: Embedder) -> Rule:
    least = float(table.take("least", (int, float)))
    if not 0 < least < 1:
        raise UsageError(f"{table.where}: `least` is a share, above 0 and below 1.")
    return Unread(name, frozenset(fold(word) for word in table.strings("words")), least)


def _nested(table: _Table, name: str, embedder: Embedder) -> tuple[Rule, ...]:
    inner = table.take("rules", list)
    if not inner:
        raise UsageError(f"{table.where}: `rules` is empty.")
    return tuple(_rule(_Table(rule, table.where), name, embedder) for rule in inner)


_MAKERS: dict[str, Callable[[_Table, str, Embedder], Rule]] = {
    "keywords": _keywords,
    "patterns": _patterns,
    "identifiers": _identifiers,
    "seeds": _seeds,
    "unread": _unread,
    "any_of": lambda table, name, embedder: AnyOf(_nested(table, name, embedder)),
    "all_of": lambda table, name, embedder: AllOf(name, _nested(table, name, embedder)),
}
