"""Rules that find a record sensitive. Each is one object with one method.

Invariants
- A rule can only claim a record, never clear it: `judge` returns a verdict or None, and None outvotes nothing.
- A verdict names its rule and holds no part of the text.
- Rules see text folded by `fold`, so that case, full-width digits and invisible characters hide nothing.
- Rules are pure: no clock, file or socket; equal (text, vector) gives an equal verdict.

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
_MOST = 3.0  # a rule that matches more than this many times its threshold is no surer


@dataclass(frozen=True)
class Verdict:
    """`rule` claims the record; `strength` (1 at its threshold, at most 3) only chooses between topics."""

    rule: str
    strength: float = 1.0


class Folded(str):
    """A folded text, with its words and phrases found once for all rules; `__dict__` goes when the text goes."""

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Words in order."""
        return tuple(_WORD.findall(self.replace("’", "'")))

    @cached_property
    def terms(self) -> frozenset[str]:
        """Words, and phrases of two and three words."""
        runs = (zip(*(self.words[i:] for i in range(n)), strict=False) for n in range(1, LONGEST_PHRASE + 1))
        return frozenset(" ".join(run) for group in runs for run in group)


class Rule(Protocol):
    """One way to find a record sensitive."""

    def judge(self, text: Folded, vector: NDArray[np.float32]) -> Verdict | None:
        """Verdict on a folded text and its unit vector [dim], or None."""
        ...


@dataclass(frozen=True)
class AnyOf:
    """The strongest verdict of its rules, the first on a tie."""

    rules: tuple[Rule, ...]

    def judge(self, text: Folded, vector: NDArray[np.float32]) -> Verdict | None:
        """See Rule. No rules: None."""
        found = [verdict for rule in self.rules if (verdict := rule.judge(text, vector))]
        return max(found, key=lambda verdict: verdict.strength, default=None)


@dataclass(frozen=True)
class AllOf:
    """A verdict, as strong as the weakest, where each of its rules gives one."""

    name: str
    rules: tuple[Rule, ...]

    def judge(self, text: Folded, vector: NDArray[np.float32]) -> Verdict | None:
        """See Rule. No rules: None, for nothing was claimed."""
        found = [rule.judge(text, vector) for rule in self.rules]
        strengths = [verdict.strength for verdict in found if verdict]
        return Verdict(self.name, min(strengths)) if found and len(strengths) == len(found) else None


@dataclass(frozen=True)
class Keywords:
    """At least `at_least` different words or phrases (of up to three words) of `words` occur as whole words."""

    name: str
    words: frozenset[str]
    at_least: int = 1

    def judge(self, text: Folded, vector: NDArray[np.float32]) -> Verdict | None:
        """See Rule."""
        hits = len(self.words & text.terms)
        return Verdict(self.name, min(hits / self.at_least, _MOST)) if hits >= self.at_least else None


@dataclass(frozen=True)
class Patterns:
    """One of `patterns` (regular expressions on folded text) is found."""

    name: str
    patterns: tuple[str, ...]

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile("|".join(f"(?:{pattern})" for pattern in self.patterns))

    def judge(self, text: Folded, vector: NDArray[np.float32]) -> Verdict | None:
        """See Rule."""
        return Verdict(self.name) if self.patterns and self._compiled.search(text) else None


@dataclass(frozen=True)
class Unread:
    """In doubt: the other rules cannot read the text.

    Its vector is zero, or fewer than `least` of its words are `words`, the commonest of the language that rules know.
    """

    name: str
    words: frozenset[str]
    least: float

    def judge(self, text: Folded, vector: NDArray[np.float32]) -> Verdict | None:
        """See Rule. Weak: any other rule knows the topic better."""
        known = sum(word in self.words for word in text.words)
        read = bool(text.words) and bool(vector.any()) and known >= self.least * len(text.words)
        return None if read else Verdict(self.name, _WEAK)


@dataclass(frozen=True, eq=False)
class SeedPhrases:
    """The text's vector lies within cosine `threshold` of a seed phrase; `seeds_SD` are unit rows, embedded once."""

    name: str
    seeds_SD: NDArray[np.float32]
    threshold: float

    def judge(self, text: Folded, vector: NDArray[np.float32]) -> Verdict | None:
        """See Rule."""
        if not np.isfinite(vector).all():
            return Verdict(self.name, _WEAK)  # in doubt
        nearest = float((self.seeds_SD * vector).sum(axis=1).max())
        return Verdict(self.name, min(nearest / self.threshold, _MOST)) if nearest >= self.threshold else None


def fold(text: str) -> Folded:
    """Compatibility form, casefolded, without invisible characters: the only form that rules see."""
    return Folded(unicodedata.normalize("NFKC", _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).casefold()))
