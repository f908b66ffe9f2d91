"""Find policy files, read them strictly, and turn them into rules.

Invariants
- An unknown key or kind, or an invalid number, raises a UsageError that names file and key. So a misspelt rule is
  always noticed.
- A name is looked up inside the installed package first, then in `policies/` beside it.
- Every topic has a finite budget: epsilon above 0, delta in (0, 1e-5]. So has the device in federations.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, get_args

from msgspec import Meta, field

import fedmem
from fedmem import toml
from fedmem.errors import UsageError
from fedmem.policy.rules import Rule
from fedmem.policy.tables import AnyTable
from fedmem.routing.embedder import Embedder

MAX_DELTA = 1e-5
LIFETIME_EPSILON = 10.0
GRANULARITIES = ("topic", "cluster")
_KINDS = ", ".join(sorted(table.__struct_config__.tag for table in get_args(AnyTable)))
_ADVICE = f"The policies `default` and `floor` show every key; kinds of rules are {_KINDS}."


@dataclass(frozen=True)
class Topic:
    """A private topic: the DP budget of a record in it, and its granularity.

    With granularity `topic` it has one block, with `cluster` one block for each cluster.
    """

    name: str
    epsilon: float
    delta: float
    granularity: str = "topic"


Epsilon = Annotated[float, Meta(gt=0, le=sys.float_info.max)]
Delta = Annotated[float, Meta(gt=0, le=MAX_DELTA)]


class FederationTable(toml.TomlTable, frozen=True):
    """The table `[federation]`: what all federations of a device together may cost it, and plans without noise.

    `allow_no_dp` is None where the file does not say.
    """

    epsilon: Epsilon = LIFETIME_EPSILON
    delta: Delta = MAX_DELTA
    allow_no_dp: bool | None = None


@dataclass(frozen=True)
class Layer:
    """A policy file as read: its topics, the rules of the topics that it places as private, and `[federation]`."""

    name: str
    topics: Mapping[str, Topic]
    rules: Mapping[str, tuple[Rule, ...]]
    federation: FederationTable


class PolicyTable(toml.TomlTable, frozen=True):
    """The whole file. Tables of topics are validated one by one, so that an error names the topic."""

    schema: Annotated[str, toml.one_of(["fedmem.policy/1"])]
    name: str
    federation: FederationTable = FederationTable()
    topics: dict[Annotated[str, Meta(pattern=r"\A[a-z][a-z0-9_-]{0,31}\Z")], dict[str, Any]] = field(
        default_factory=dict
    )


class TopicTable(toml.TomlTable, frozen=True):
    """A table `[topics.<name>]`: its budget and its rules."""

    epsilon: Epsilon
    delta: Delta
    granularity: Annotated[str, toml.one_of(GRANULARITIES)] = "topic"
    placement: Annotated[str, toml.one_of(("private", "shared"))] = "private"
    rules: tuple[AnyTable, ...] = ()


def read_policy(name_or_path: str | Path) -> bytes:
    """Return the bytes of a policy file.

    Args:
        name_or_path: the path of a file that ends in .toml, or the name of a policy.

    Raises:
        UsageError: the file cannot be read, or there is no policy of this name.
    """
    if str(name_or_path).endswith(".toml"):
        try:
            return Path(name_or_path).read_bytes()
        except OSError as error:
            raise UsageError(f"The policy file {name_or_path} cannot be read. Check its path.") from error
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", str(name_or_path)):
        raise UsageError("A policy is named by small letters, digits, - and _, or by the path of a .toml file.")
    beside_package = Path(str(fedmem.__file__)).parent.parent / "policies"
    for folder in (resources.files("fedmem") / "policies", beside_package):
        if (file := folder / f"{name_or_path}.toml").is_file():
            return file.read_bytes()
    raise UsageError(f"No policy named {name_or_path}. Name one that exists, or give the path of a .toml file.")


def parse_policy(data: bytes, where: str, embedder: Embedder) -> Layer:
    """Read one policy file.

    Args:
        data: The file's bytes.
        where: The file's name for errors.
        embedder: Embeds the seed phrases.

    Returns:
        Topics and rules of the file.

    Raises:
        UsageError: The file is not a valid policy; the message names `where` and the key.
    """
    policy = toml.validated(toml.parse(data, where), PolicyTable, where, _ADVICE)
    topics, rules = dict[str, Topic](), dict[str, tuple[Rule, ...]]()
    for name, values in policy.topics.items():
        table = toml.validated(values, TopicTable, f"{where}, topics.{name}", _ADVICE)
        topics[name] = Topic(name, table.epsilon, table.delta, table.granularity)
        private = table.rules if table.placement == "private" else ()
        rules[name] = tuple(rule.rule(f"{policy.name}.{name}", embedder) for rule in private)
    return Layer(policy.name, topics, rules, policy.federation)
