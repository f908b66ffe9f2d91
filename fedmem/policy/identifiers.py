"""Find valid identifiers in a text: numbers with correct check digits, phone numbers and e-mail addresses.

Invariants
- A verdict names the kind of identifier and never the identifier.
- A number counts only if its checksum or numbering plan accepts it, so dates and population figures do not count.
- Reading a text takes linear time. If it holds more candidates than are checked, it counts as holding one: in doubt a
  text is private.

>>> import numpy as np
>>> from fedmem.policy.rules import fold
>>> Identifiers("ids", ("iban",)).judge(fold("Pay GB33 BUKB 2020 1555 5555 55 now"), np.zeros(1, dtype=np.float32))
Verdict(rule='ids:iban', strength=1.0)
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from stdnum import iban, luhn
from stdnum.us import ssn

from fedmem.policy.rules import Folded, Verdict

_IBAN = re.compile(r"(?<![^\W_])[a-z]{2}[0-9]{2}(?:[ -]?[a-z0-9]){11,30}(?![^\W_])")
_CARD = re.compile(r"(?<![\d.,])[2-6](?:[ -]?[0-9]){11,18}(?![\d]|[.,]\d)")
_SSN = re.compile(r"(?<![\d-])[0-9]{3}-[0-9]{2}-[0-9]{4}(?![\d-])")
# The local part is looked at from its end: read from its start, a long run of letters would be quadratic.
_EMAIL = re.compile(r"(?<=[a-z0-9._%+'-])@(?:[a-z0-9-]+\.)+[a-z]{2}")
_AS_DIGITS = {ord(letter): str(number) for number, letter in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZ", start=10)}
_MOST_CANDIDATES = 1000
_MARGIN = 40  # characters before and after digits that a phone number may include, such as brackets and an extension
_MOST_PHONE_CHARACTERS = 20_000  # phonenumbers checks about 100,000 characters a second
_PHONE_LIKE = re.compile(r"(?:\d[\s().x/+-]{0,3}){7,}")


@dataclass(frozen=True)
class Identifiers:
    """A rule that claims a text with a valid identifier of one of `kinds` (see KINDS)."""

    name: str
    kinds: tuple[str, ...]

    def judge(self, text: Folded, vector: NDArray[np.float32]) -> Verdict | None:
        """Return the verdict, as in Rule."""
        for kind in self.kinds:
            if KINDS[kind](text):
                return Verdict(f"{self.name}:{kind}")
        return None


def _has_valid(candidates: Iterable[str], is_valid: Callable[[str], bool]) -> bool:
    """Return True if a candidate is valid, or if there are too many to check them all."""
    return any(number == _MOST_CANDIDATES or is_valid(text) for number, text in enumerate(candidates))


def _has_iban(text: str) -> bool:
    return _has_valid((match.group() for match in _IBAN.finditer(text)), _is_iban)


def _is_iban(candidate: str) -> bool:
    # A candidate may include following words, so shorter ends are tried too: 15 is the length of the shortest IBAN.
    compact = re.sub("[ -]", "", candidate).upper()
    starts = (compact[:end] for end in range(15, len(compact) + 1))
    return any(_is_remainder_one(start) and iban.is_valid(start, check_country=False) for start in starts)


def _is_remainder_one(number: str) -> bool:
    """Return True if the check digits are right (ISO 7064, modulo 97): a quick test before the full one."""
    return int((number[4:] + number[:4]).translate(_AS_DIGITS)) % 97 == 1


def _has_card(text: str) -> bool:
    candidates = (re.sub("[ -]", "", match.group()) for match in _CARD.finditer(text))
    return _has_valid(candidates, luhn.is_valid)


def _has_ssn(text: str) -> bool:
    return _has_valid((match.group() for match in _SSN.finditer(text)), ssn.is_valid)


def _has_email(text: str) -> bool:
    return _EMAIL.search(text) is not None


def _has_phone(text: str) -> bool:
    windows = _phone_windows(text)
    if not windows:
        return False
    if sum(map(len, windows)) > _MOST_PHONE_CHARACTERS:
        return True
    import phonenumbers  # here, not above: its tables cost memory that most texts do not need

    return any(True for window in windows for _ in phonenumbers.PhoneNumberMatcher(window, "US"))


def _phone_windows(text: str) -> list[str]:
    """Return the parts of a text around digits that may be a phone number. Close ones are one part."""
    spans: list[tuple[int, int]] = []
    for match in _PHONE_LIKE.finditer(text):
        start, end = max(0, match.start() - _MARGIN), match.end() + _MARGIN
        if spans and start <= spans[-1][1]:
            start = spans.pop()[0]
        spans.append((start, end))
    return [text[start:end] for start, end in spans]


KINDS: dict[str, Callable[[str], bool]] = {
    "iban": _has_iban,
    "card": _has_card,
    "us_ssn": _has_ssn,
    "email": _has_email,
    "phone": _has_phone,
}
