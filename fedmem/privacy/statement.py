"""What a ledger says about privacy, as facts: the guarantee's terms, the subject's ε, topics and runs.

Invariants
- Every ε is computed from the events given; nothing is kept, and no clock is read.
- A topic's figure is what the gate compares with its budget: the greatest ε of a record that it holds now.
- What the figures do not cover stands beside them, always.

    | case | result |
    |---|---|
    | no event | ε 0 everywhere |
    | a run without noise, or spends that a restored backup may lack | ε infinite, nothing left |
    | a topic that the policy does not know | no budget, nothing left |

>>> from types import SimpleNamespace
>>> topic_spent("health", SimpleNamespace(epsilon=8.0, delta=1e-5), 2.0)
TopicSpent(topic='health', budget=8.0, delta=1e-05, epsilon=2.0, left=6.0)
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedmem.privacy.ledger import Accountant, LedgerEvent, State, charges, greatest_epsilon, states
from fedmem.privacy.plan import DELTA

UNIT = "one record: a document of the subject, however many sequences it is cut into"
ADJACENCY = "add or remove one record"
MECHANISM = "Gaussian noise on the sum of clipped per-record gradients, each record in a step's sample by its own coin"
PUBLIC = (
    "the plan of a run: sampling rate, steps, clip norm, noise multiplier, divisor, δ, and the declared cap on records",
    "the release: anchor, shared bank, tree and embedder, and with it the shape of a block",
    "that a run took place, in which order, and how it ended",
)
NOT_COVERED = (
    "Groups: k records that tell the same thing are protected together by k times ε only, at a greater δ.",
    "The vault itself: search and explanations show its owner the records as they are; what is sealed in it is guarded "
    "by keys, not by noise, and its files show how many sealed items there are and how long.",
    "Choices made after a look at private results: a plan, topic or policy chosen for them tells more than is counted.",
    "Shared records: what federated rounds carried stands in the ledger of the federation.",
    "Copies outside the vault, this report among them, and blocks that were exported.",
    "The machine: a broken operating system, memory, swap, and how long or how much it computed.",
    "Errors in the program: the figures hold for the mechanism as stated; `fedmem privacy audit` attacks the program.",
)


@dataclass(frozen=True)
class Spent:
    """One training run in the ledger, and what it cost alone.

    Attributes:
        topic: None where the vault no longer knows it: the run's block was erased.
        release: digest of the release that it was trained on; "" where that is unknown.
        state: open, finished, failed, erased, or lost: spends that a restored backup may lack.
    """

    run: str
    block: str
    topic: str | None
    epsilon: float
    release: str
    sampling_rate: float
    noise_multiplier: float
    steps: int
    state: State


class TopicBudget(Protocol):
    """The budget of a topic, as a policy gives it."""

    @property
    def epsilon(self) -> float:
        """The most ε that a record of the topic may spend."""
        ...

    @property
    def delta(self) -> float:
        """The δ that this ε is for."""
        ...


@dataclass(frozen=True)
class TopicSpent:
    """A topic against its budget; `epsilon` is that of its most used record, at `delta`. `left` is the difference."""

    topic: str
    budget: float | None
    delta: float
    epsilon: float
    left: float


@dataclass(frozen=True)
class Statement:
    """All that a report says.

    Attributes:
        epsilon_pld: None where `dp-accounting` is not installed; topics and runs are then by RDP.
        events, head: number of events of the ledger, and the digest of the last one ("" where there is none).
        noted: how many of the events the keystore vouches for; None where it knows of none.
    """

    vault: str
    simulated: bool
    delta: float
    epsilon_pld: float | None
    epsilon_rdp: float
    topics: list[TopicSpent]
    runs: list[Spent]
    events: int
    head: str
    noted: int | None
    unit: str = UNIT
    adjacency: str = ADJACENCY
    mechanism: str = MECHANISM
    public: tuple[str, ...] = PUBLIC
    not_covered: tuple[str, ...] = NOT_COVERED


def runs_spent(events: Sequence[LedgerEvent], topics: Mapping[str, str], accountant: Accountant) -> list[Spent]:
    """Every run with its own ε at δ = 1e-5; `topics` names those that are known, by run id. Raises as `states`."""
    now = states(events)

    def spent(run: str, block: str, epsilon: float, release: str, how: tuple[float, float, int]) -> Spent:
        return Spent(run, block, topics.get(run), epsilon, release, *how, now[run])

    return [
        spent(one.run, one.block, accountant([one.spend], DELTA), one.release,
              (one.spend.sampling_rate, one.spend.noise_multiplier, one.spend.steps))
        for one in charges(events)
    ]  # fmt: skip


def topics_spent(
    events: Sequence[LedgerEvent],
    budgets: Mapping[str, TopicBudget],
    names: Collection[str],
    records: Callable[[str], Collection[str]],
    accountant: Accountant,
) -> list[TopicSpent]:
    """Every topic of the policy, then those of `names` that it lacks; `records` gives the ids that a topic holds."""
    found = []
    for name in (*budgets, *sorted(set(names) - budgets.keys())):
        known = budgets.get(name)
        delta = known.delta if known else DELTA
        found.append(topic_spent(name, known, greatest_epsilon(events, records(name), delta, accountant)))
    return found


def topic_spent(name: str, known: TopicBudget | None, epsilon: float) -> TopicSpent:
    """One topic's line."""
    budget, delta = (known.epsilon, known.delta) if known else (None, DELTA)
    return TopicSpent(name, budget, delta, epsilon, max(0.0, (budget or 0.0) - epsilon))
