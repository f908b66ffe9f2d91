"""Rules that claim a record as sensitive. Each rule is one object with one method.

Invariants
- A rule can only claim a record, never clear it. `judge` returns a verdict or None, and None cancels no verdict.
- A verdict names its rule and holds no part of the text.
- Rules get text that was folded by `fold`, so case, full-width digits and invisible characters cannot hide anything.
- Rules are pure: no clock, file or socket. Equal (text, vector) gives an equal verdict.

>>> rule = AllOf("both", (Keywords("money", frozenset({"my", "salary"}), 2), Patterns("sum", ("[0-9]+ usd",))))
>>> rule.judge(fold("My SALARY is 5000 USD."), np.zeros(1, dtype=np.float32))
Verdict(rule='both', strength=1.0)
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2028-\u202f\u2060-\u2064\ufeff]")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
LONGEST_PHRASE = 3  # words in the longest keyword
_WEAK = 0.1
_MOST = 3.0  # the greatest strength: more matches than this many times the threshold add nothing


@dataclass(frozen=True)
class Verdict:
    """The claim of a rule on a record. `strength` (1 at the threshold, at most 3) only decides between topics."""

    rule: str
    strength: float = 1.0


class Folded(str):
    """A folded text. Its words and phrases are computed once for all rules and are freed with the text."""

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The words in their order."""
        return tuple(_WORD.findall(self.replace("’", "'")))

    @cached_property
    def terms(self) -> frozenset[str]:
        """The words, and the phrases of two and three words."""
        runs = (zip(*(self.words[i:] for i in range(n)), strict=False) for n in range(1, LONGEST_PHRASE + 1))
        return frozenset(" ".join(run) for group in runs for run in group)


class Rule(Protocol):
    """A rule that can claim a record as sensitive."""

    def judge(self, text: Folded, vector: NDArray[np.float32]) -> Verdict | None:
        """Judge one text.

        Args:
            text: the text, folded.
            vector: `[dim]`, the unit vector of the text before folding; zero for a text without tokens.

        Returns:
            The verdict, or None if the rule does not claim the text.
        """
        ...


@dataclass(frozen=True)
class AnyOf:
    """A rule that gives the strongest verdict of its rules, the first on a tie."""

    rules: tuple[Rule, ...]

    def judge(self, text: Folded, vector: NDArray[np.float32]) -> Verdict | None:
        """Return the verdict, as in Rule; None if there are no rules."""
        verdicts = [verdict for rule in self.rules if (verdict := rule.judge(text, vector))]
        return max(verdicts, key=lambda verdict: verdict.strength, default=None)


@dataclass(frozen=True)
class AllOf:
    """A rule that claims a text if each of its rules does; its verdict is as strong as the weakest of theirs."""

    name: str
    rules: tuple[Rule, ...]

    def judge(self, text: Folded, vector: NDArray[np.float32]) -> Verdict | None:
        """Return the verdict, as in Rule; None if there are no rules."""
        verdicts = [rule.judge(text, vector) for rule in self.rules]
        strengths = [verdict.strength for verdict in verdicts if verdict]
        return Verdict(self.name, min(strengths)) if verdicts and len(strengths) == len(verdicts) else None


@dataclass(frozen=True)
class Keywords:
    """A rule that claims a text with at least `at_least` different entries of `words`.

    An entry is a word, or a phrase of up to three words, and counts as whole words only.
    """

    name: str
    words: frozenset[str]
    at_least: int = 1

    def judge(self, text: Folded, vector: NDArray[np.float32]) -> Verdict | None:
        """Return the verdict, as in Rule."""
        hits = len(self.words & text.terms)
        return Verdict(self.name, min(hits / self.at_least, _MOST)) if hits >= self.at_least else None


@dataclass(frozen=True)
class Patterns:
    """A rule that claims a text in which one of `patterns` (regular expressions on folded text) matches."""

    name: str
    patterns: tuple[str, ...]

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile("|".join(f"(?:{pattern})" for pattern in self.patterns))

    def judge(self, text: Folded, vector: NDArray[np.float32]) -> Verdict | None:
        """Return the verdict, as in Rule."""
        return Verdict(self.name) if self.patterns and self._compiled.search(text) else None


@dataclass(frozen=True)
class Unread:
    """A rule that claims a text that the other rules cannot read.

    Such a text has no words, or its vector is zero, or the share of its words that are in `words` is below `least`.
    `words` are the most common words of the language of the rules.
    """

    name: str
    words: frozenset[str]
    least: float

    def judge(self, text: Folded, vector: NDArray[np.float32]) -> Verdict | None:
        """Return the verdict, as in Rule. It is weak, so that any other rule decides the topic."""
        common = sum(word in self.words for word in text.words)
        is_readable = bool(text.words) and bool(vector.any()) and common >= self.least * len(text.words)
        return None if is_readable else Verdict(self.name, _WEAK)


@dataclass(frozen=True, eq=False)
class SeedPhrases:
    """A rule that claims a text whose vector has a cosine of at least `threshold` with a seed phrase.

    `seeds_SD` are the vectors of the seed phrases, of length 1.
    """

    name: str
    seeds_SD: NDArray[np.float32]
    threshold: float

    def judge(self, text: Folded, vector: NDArray[np.float32]) -> Verdict | None:
        """Return the verdict, as in Rule."""
        if not np.isfinite(vector).all():
            return Verdict(self.name, _WEAK)  # in doubt
        nearest = float((self.seeds_SD * vector).sum(axis=1).max())
        return Verdict(self.name, min(nearest / self.threshold, _MOST)) if nearest >= self.threshold else None


def fold(text: str) -> Folded:
    """Return a text in the form that rules get: NFKC, casefolded, without invisible characters.

    Args:
        text: any text.
    """
    return Folded(unicodedata.normalize("NFKC", _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).casefold()))
