"""Find valid identifiers in a text: numbers with correct check digits, phone numbers and e-mail addresses.

Invariants
- A verdict names the kind of identifier and never the identifier.
- A number counts only if its checksum or numbering plan accepts it, so dates and population figures do not count.

>>> import numpy as np
>>> from fedmem.policy.rules import fold
>>> Identifiers("ids", ("iban",)).judge(fold("Pay GB33 BUKB 2020 1555 5555 55 now"), np.zeros(1, dtype=np.float32))
Verdict(rule='ids:iban', strength=1.0)
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from stdnum import iban, luhn
from stdnum.us import ssn

from fedmem.policy.rules import Folded, Verdict

_IBAN = re.compile(r"(?<![^\W_])[a-z]{2}[0-9]{2}(?:[ -]?[a-z0-9]){11,30}(?![^\W_])")
_CARD = re.compile(r"(?<![\d.,])[2-6](?:[ -]?[0-9]){11,18}(?![\d]|[.,]\d)")
_SSN = re.compile(r"(?<![\d-])[0-9]{3}-[0-9]{2}-[0-9]{4}(?![\d-])")
_EMAIL = re.compile(r"[a-z0-9._%+'-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}")
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


def _has_iban(text: str) -> bool:
    # A candidate may include following words, so shorter ends are tried too: 15 is the length of the shortest IBAN.
    for match in _IBAN.finditer(text):
        compact = re.sub("[ -]", "", match.group()).upper()
        if any(iban.is_valid(compact[:end], check_country=False) for end in range(15, len(compact) + 1)):
            return True
    return False


def _has_card(text: str) -> bool:
    return any(luhn.is_valid(re.sub("[ -]", "", match.group())) for match in _CARD.finditer(text))


def _has_ssn(text: str) -> bool:
    return any(ssn.is_valid(match.group()) for match in _SSN.finditer(text))


def _has_email(text: str) -> bool:
    return _EMAIL.search(text) is not None


def _has_phone(text: str) -> bool:
    if not _PHONE_LIKE.search(text):
        return False
    import phonenumbers  # here, not above: its tables cost memory that most texts do not need

    return any(True for _ in phonenumbers.PhoneNumberMatcher(text, "US"))


KINDS: dict[str, Callable[[str], bool]] = {
    "iban": _has_iban,
    "card": _has_card,
    "us_ssn": _has_ssn,
    "email": _has_email,
    "phone": _has_phone,
}
