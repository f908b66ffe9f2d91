"""The tables `[[rules]]` of a policy file, each with a method that makes its rule.

Invariants
- A table is validated when it is read, so the content of a file never makes a rule fail on a text.
- A rule is named `<prefix>.<name or kind>`. The prefix of a nested rule is the name of its parent.

>>> from fedmem.routing.embedder import StaticEmbedder
>>> KeywordsTable(words=("my salary",)).rule("mine.money", StaticEmbedder())
Keywords(name='mine.money.keywords', words=frozenset({'my salary'}), at_least=1)
"""

import re
from typing import Annotated

from msgspec import Meta

from fedmem.policy.identifiers import KINDS, Identifiers
from fedmem.policy.rules import LONGEST_PHRASE, AllOf, AnyOf, Keywords, Patterns, Rule, SeedPhrases, Unread, fold
from fedmem.routing.embedder import Embedder
from fedmem.toml import TomlTable, one_of

Texts = Annotated[tuple[Annotated[str, Meta(pattern=r"\S")], ...], Meta(min_length=1)]
Share = Annotated[float, Meta(gt=0, lt=1)]


class RuleTable(TomlTable, frozen=True, kw_only=True, tag_field="kind"):
    """The common keys of all `[[rules]]`: `kind`, and `name` to tell two rules of the same kind apart."""

    name: str = ""

    def full_name(self, prefix: str) -> str:
        """Return the name of the rule in decisions and logs.

        Args:
            prefix: name of the policy and topic, or of the parent rule.
        """
        return f"{prefix}.{self.name or self.__struct_config__.tag}"

    def rule(self, prefix: str, embedder: Embedder) -> Rule:
        """Return the rule of this table.

        Args:
            prefix: the name of the rule begins with it.
            embedder: embeds seed phrases, if the rule has any.
        """
        raise NotImplementedError


class KeywordsTable(RuleTable, frozen=True, tag="keywords"):
    """Words and phrases, and the number of them that must occur."""

    words: Texts
    at_least: Annotated[int, Meta(ge=1)] = 1

    def __post_init__(self) -> None:
        if not all(1 <= len(fold(phrase).words) <= LONGEST_PHRASE for phrase in self.words):
            raise ValueError(f"`words` must be phrases of one to {LONGEST_PHRASE} words")
        if self.at_least > len(self.words):
            raise ValueError("`at_least` is larger than the number of `words`")

    def rule(self, prefix: str, embedder: Embedder) -> Rule:
        """Return the rule of this table."""
        phrases = frozenset(" ".join(fold(phrase).words) for phrase in self.words)
        return Keywords(self.full_name(prefix), phrases, self.at_least)


class PatternsTable(RuleTable, frozen=True, tag="patterns"):
    """Regular expressions on folded text."""

    patterns: Texts

    def __post_init__(self) -> None:
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"one of `patterns` is not a regular expression: {error}") from error

    def rule(self, prefix: str, embedder: Embedder) -> Rule:
        """Return the rule of this table."""
        return Patterns(self.full_name(prefix), self.patterns)


class IdentifiersTable(RuleTable, frozen=True, tag="identifiers"):
    """Kinds of identifiers, each validated by its check digits or numbering plan."""

    kinds: Annotated[tuple[Annotated[str, one_of(KINDS)], ...], Meta(min_length=1)]

    def rule(self, prefix: str, embedder: Embedder) -> Rule:
        """Return the rule of this table."""
        return Identifiers(self.full_name(prefix), self.kinds)


class SeedsTable(RuleTable, frozen=True, tag="seeds"):
    """Phrases, and the least cosine of a text with one of them."""

    phrases: Texts
    threshold: Share

    def rule(self, prefix: str, embedder: Embedder) -> Rule:
        """Return the rule of this table, with its phrases embedded."""
        return SeedPhrases(self.full_name(prefix), embedder.embed(self.phrases), self.threshold)


class UnreadTable(RuleTable, frozen=True, tag="unread"):
    """The most common words of the language of the rules, and their least share in a text."""

    words: Texts
    least: Share

    def rule(self, prefix: str, embedder: Embedder) -> Rule:
        """Return the rule of this table."""
        return Unread(self.full_name(prefix), frozenset(fold(word) for word in self.words), self.least)


class AnyOfTable(RuleTable, frozen=True, tag="any_of"):
    """Rules of which at least one must claim a text."""

    rules: "Annotated[tuple[AnyTable, ...], Meta(min_length=1)]"

    def rule(self, prefix: str, embedder: Embedder) -> Rule:
        """Return the rule of this table, which contains the rules of its tables."""
        return AnyOf(tuple(table.rule(self.full_name(prefix), embedder) for table in self.rules))


class AllOfTable(RuleTable, frozen=True, tag="all_of"):
    """Rules that must all claim a text."""

    rules: "Annotated[tuple[AnyTable, ...], Meta(min_length=1)]"

    def rule(self, prefix: str, embedder: Embedder) -> Rule:
        """Return the rule of this table, which contains the rules of its tables."""
        name = self.full_name(prefix)
        return AllOf(name, tuple(table.rule(name, embedder) for table in self.rules))


AnyTable = (
    KeywordsTable | PatternsTable | IdentifiersTable | SeedsTable | UnreadTable | AnyOfTable | AllOfTable
)  # `kind` decides between them
