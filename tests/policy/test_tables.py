"""The tables of rules: each makes its rule, named by its place, and refuses values that make none."""

import msgspec
import numpy as np
import pytest

from fedmem.policy.rules import AllOf, AnyOf, Keywords, Patterns, SeedPhrases, Unread, Verdict, fold
from fedmem.policy.tables import AnyTable, KeywordsTable
from fedmem.routing.embedder import StaticEmbedder

STATIC = StaticEmbedder()
TABLES = {
    Keywords: {"kind": "keywords", "words": ["My  SALARY"]},
    Patterns: {"kind": "patterns", "patterns": ["[0-9]+ usd"]},
    SeedPhrases: {"kind": "seeds", "phrases": ["my salary is low"], "threshold": 0.9},
    Unread: {"kind": "unread", "words": ["the"], "least": 0.5},
    AnyOf: {"kind": "any_of", "rules": [{"kind": "patterns", "patterns": ["salary"]}]},
    AllOf: {"kind": "all_of", "name": "both", "rules": [{"kind": "patterns", "patterns": ["salary"]}]},
}


def table(values: dict) -> AnyTable:
    return msgspec.convert(values, AnyTable)


@pytest.mark.parametrize("kind", TABLES)
def test_each_table_makes_its_rule_which_claims_its_text(kind: type) -> None:
    text = "my salary is 500 USD"
    rule = table(TABLES[kind]).rule("mine.money", STATIC)
    assert type(rule) is kind
    if kind is SeedPhrases:
        text = "my salary is low"
    verdict = rule.judge(fold(text), STATIC.embed([text])[0])
    assert verdict is not None
    assert verdict.rule.startswith("mine.money.")


def test_a_nested_rule_is_named_after_its_parent() -> None:
    values = {"kind": "any_of", "name": "pay", "rules": [{"kind": "patterns", "name": "sum", "patterns": ["usd"]}]}
    rule = table(values).rule("mine.money", STATIC)
    assert rule.judge(fold("5 USD"), np.zeros(1, np.float32)) == Verdict("mine.money.pay.sum")


def test_words_of_a_table_are_folded_as_texts_are() -> None:
    assert KeywordsTable(words=("ＭＹ salary",)).rule("p", STATIC).judge(fold("My SALARY"), np.zeros(1, np.float32))


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "keywords", "words": ["one two three four"]},
        {"kind": "keywords", "words": ["soup"], "at_least": 0},
        {"kind": "patterns", "patterns": ["("]},
        {"kind": "seeds", "phrases": [" "], "threshold": 0.5},
        {"kind": "seeds", "phrases": ["a"], "threshold": 0.0},
        {"kind": "any_of", "rules": []},
        {"kind": "identifiers", "kinds": ["shoe"]},
    ],
)
def test_values_that_make_no_rule_are_refused(values: dict) -> None:
    with pytest.raises(msgspec.ValidationError):
        table(values)
