"""Generate private text of an invented person, about money or as personal notes, from Faker with a seed.

Invariants
- Records are a function of (topic, n, seed), in every process and on every day: no clock, no global generator.
- One seed is one person. All records have the same accounts, friends and family, so there is something to learn.
- Records of one call differ from each other.

>>> len(generate("notes", 3, seed=7)) == len(set(generate("notes", 3, seed=7))) == 3
True
"""

import random
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmem.errors import UsageError
from fedmem.sim.sources.phrases import FINANCE, NOTES
from fedmem.sim.sources.record import SourceRecord

if TYPE_CHECKING:
    from faker import Faker

PATTERNS = {"finance": FINANCE, "notes": NOTES}
ATTRIBUTION = "Invented persons generated with Faker (MIT); no real person is described."
_CHOICE = re.compile(r"\[([^\]]*)\]")
_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_RELATIONS = ("mother", "father", "sister", "brother", "daughter", "son", "aunt", "uncle", "cousin", "grandmother")
_GIFTS = (
    "a red scarf",
    "a chess set",
    "a fountain pen",
    "hiking boots",
    "a cookbook",
    "a record player",
    "concert tickets",
)
_FOODS = ("nuts", "fish", "cheese", "apple pie", "bread", "mushrooms", "chocolate", "soup")
_PETS = ("Biscuit", "Momo", "Pepper", "Loki", "Nala", "Socks")
_SITES = (
    "the photo account",
    "my e-mail",
    "the library site",
    "the school portal",
    "the streaming account",
    "the rail card",
)


@dataclass(frozen=True)
class _Person:
    name: str
    phone: str
    email: str
    address: str
    birthday: str
    relation: str
    iban: str


@dataclass(frozen=True)
class _Account:
    bank: str
    iban: str
    number: str
    last4: str
    expires: str


def generate(topic: str, n: int, *, seed: int) -> list[SourceRecord]:
    """Return `n` records of the person that belongs to `seed`.

    Args:
        topic: "finance" or "notes".
        n: the number of records, 0 or more.
        seed: the seed of the person.

    Raises:
        UsageError: the topic is another one, `n` is negative, or Faker is not installed.
    """
    if topic not in PATTERNS or n < 0:
        raise UsageError(f"Persons have {' and '.join(PATTERNS)}, and a number of records of 0 or more.")
    fields = _Fields(random.Random(f"{topic}:{seed}"), _faker(seed))  # noqa: S311 - invented text, not privacy
    texts: dict[str, None] = {}
    while len(texts) < n:
        texts.setdefault(fields.fill(PATTERNS[topic]))
    return [SourceRecord(text, topic) for text in texts]


def _faker(seed: int) -> "Faker":
    try:
        from faker import Faker
    except ImportError as error:
        raise UsageError("Faker is not installed. Install it with: pip install 'fedmem[sim]'") from error
    faker = Faker("en_US", use_weighting=False)
    faker.seed_instance(zlib.crc32(f"person:{seed}".encode()))
    return faker


class _Fields(dict[str, object]):
    """The fields of a record, drawn when a pattern first uses them; people, accounts and places stay the same."""

    def __init__(self, rng: random.Random, faker: "Faker") -> None:
        super().__init__()
        self._rng = rng
        self._friends = [_person(faker, "friend") for _ in range(14)]
        self._family = [_person(faker, relation) for relation in faker.random_elements(_RELATIONS, 6, unique=True)]
        self._accounts, self._cards = ([_account(faker) for _ in range(size)] for size in (3, 3))
        self._shops, self._cities = [faker.company() for _ in range(24)], [faker.city() for _ in range(8)]
        self._employer, self._home = faker.company(), faker.street_address()

    def fill(self, patterns: tuple[str, ...]) -> str:
        """Return a new record from one or two of `patterns`."""
        self.clear()
        pattern = " ".join(self._rng.sample(patterns, self._rng.choice((1, 2, 2))))
        return _CHOICE.sub(lambda m: self._rng.choice(m.group(1).split("|")), pattern).format_map(self)

    def __missing__(self, name: str) -> object:
        self[name] = value = _DRAWS[name](self, self._rng)
        return value


def _person(faker: "Faker", relation: str) -> _Person:
    first, last = faker.first_name(), faker.last_name()
    birthday = f"{faker.random_int(1, 28)} {faker.random_element(_MONTHS)}"
    email = f"{first.lower()}.{last.lower()}@{faker.free_email_domain()}"
    phone = f"({faker.random_int(201, 989)}) 555-{faker.random_int(100, 9999):04d}"
    address = f"{faker.street_address()}, {faker.city()}"
    return _Person(f"{first} {last}", phone, email, address, birthday, relation, _iban(faker))


def _account(faker: "Faker") -> _Account:
    digits = faker.credit_card_number("visa16")
    number = " ".join(digits[i : i + 4] for i in range(0, 16, 4))
    bank = f"{faker.last_name()} {faker.random_element(('Bank', 'Savings Bank', 'Credit Union', 'Trust'))}"
    expires = f"{faker.random_int(1, 12):02d}/{faker.random_int(27, 33)}"
    return _Account(bank, _iban(faker), number, digits[-4:], expires)


def _iban(faker: "Faker") -> str:
    plain = str(faker.iban())
    return " ".join(plain[i : i + 4] for i in range(0, len(plain), 4))


def _sum(low: int, high: int) -> Callable[[_Fields, random.Random], str]:
    return lambda _, rng: f"${rng.randint(low, high):,}.{rng.choice((0, 0, 25, 50, 95, 99)):02d}"


def _day(_: _Fields, rng: random.Random) -> str:
    return f"{rng.randint(1, 28)} {rng.choice(_MONTHS)}"


def _password(_: _Fields, rng: random.Random) -> str:
    return f"{rng.choice(_PETS).lower()}-{rng.choice(_FOODS).replace(' ', '')}-{rng.randint(10, 999)}"


_DRAWS: dict[str, Callable[[_Fields, random.Random], object]] = {
    "tiny": _sum(12, 95),
    "small": _sum(80, 640),
    "amount": _sum(300, 2400),
    "net": _sum(2200, 4300),
    "gross": _sum(38000, 72000),
    "tax": _sum(6000, 15000),
    "big": _sum(9000, 240000),
    "balance": _sum(150, 18000),
    "limit": lambda f, rng: f"${rng.randint(1, 20) * 500:,}",
    "rate": lambda f, rng: f"{rng.randint(4, 29) / 4:.2f}",
    "score": lambda f, rng: rng.randint(540, 830),
    "count": lambda f, rng: rng.randint(3, 60),
    "year": lambda f, rng: rng.randint(2019, 2038),
    "number": lambda f, rng: f"{rng.choice('ABCDEFGH')}{rng.randint(100000, 999999)}",
    "pin": lambda f, rng: f"{rng.randint(0, 9999):04d}",
    "hour": lambda f, rng: f"{rng.randint(8, 20)}:{rng.choice(('00', '15', '30', '45'))}",
    "ordinal": lambda f, rng: rng.choice(("1st", "3rd", "5th", "15th", "25th", "28th")),
    "month": lambda f, rng: rng.choice(_MONTHS),
    "day": _day,
    "password": _password,
    "password2": _password,
    "gift": lambda f, rng: rng.choice(_GIFTS[:4]),
    "gift2": lambda f, rng: rng.choice(_GIFTS[4:]),
    "food": lambda f, rng: rng.choice(_FOODS),
    "pet": lambda f, rng: rng.choice(_PETS),
    "site": lambda f, rng: rng.choice(_SITES),
    "city": lambda f, rng: rng.choice(f._cities),
    "shop": lambda f, rng: rng.choice(f._shops),
    "employer": lambda f, rng: f._employer,
    "home": lambda f, rng: f._home,
    "account": lambda f, rng: rng.choice(f._accounts),
    "card": lambda f, rng: rng.choice(f._cards),
    "payee": lambda f, rng: rng.choice(f._friends),
    "friend": lambda f, rng: rng.choice(f._friends[:7]),
    "friend2": lambda f, rng: rng.choice(f._friends[7:]),
    "family": lambda f, rng: rng.choice(f._family),
}
