"""Identifiers count only where their check digits or numbering plan accept them."""

import numpy as np
import pytest

from fedmem.policy.identifiers import KINDS, Identifiers
from fedmem.policy.rules import Verdict, fold

V = np.ones(2, dtype=np.float32)


IDENTIFIERS = {
    "iban": (["pay GB33 BUKB 2020 1555 5555 55 today", "DE89370400440532013000", "to de89 3704 0044 0532 0130 00."],
             ["GB33 BUKB 2020 1555 5555 56", "AB12", "in 1914 the 33rd division of the army moved"]),
    "card": (["card 4111 1111 1111 1111", "5555-5555-5555-4444 until 12/29"],
             ["4111 1111 1111 1112", "a population of 4111111", "0.4111111111111111"]),
    "us_ssn": (["SSN 536-90-4399"], ["000-12-3456", "536-90-43990", "on 12-11-1918"]),
    "email": (["write to a.b+c@example.co.uk"], ["@handle", "a @ b", "see example.com"]),
    "phone": (["call +1 650-253-0000", "+44 20 7031 3000"], ["from 1939 to 1945", "1,234,567 people", "0-306-40615-2"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", IDENTIFIERS)
def test_identifiers_count_only_where_they_are_valid(kind: str) -> None:
    valid, invalid = IDENTIFIERS[kind]
    rule = Identifiers("ids", (kind,))
    assert [rule.judge(fold(text), V) for text in valid] == [Verdict(f"ids:{kind}")] * len(valid)
    assert [rule.judge(fold(text), V) for text in invalid] == [None] * len(invalid)


def test_every_kind_has_examples() -> None:
    assert set(IDENTIFIERS) == set(KINDS)


def test_the_first_of_several_kinds_names_the_verdict_and_no_number() -> None:
    text = fold("mail a@example.org or pay DE89370400440532013000")
    assert Identifiers("ids", ("iban", "email")).judge(text, V) == Verdict("ids:iban")
    assert Identifiers("ids", ("email", "iban")).judge(text, V) == Verdict("ids:email")
    assert Identifiers("ids", ()).judge(text, V) is None
