"""Collect the facts of a ledger about privacy: terms of the guarantee, the subject's ε, topics and runs.

Invariants
- Every ε is computed from the given events. Nothing is stored, and no clock is read.
- The ε of a topic is the figure that the gate compares with its budget: the greatest ε of a record that it holds now.
- Every statement lists what its figures do not cover.

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
    """A training run in the ledger, and its cost alone.

    Attributes:
        run: random id of the run.
        block: random id of the block version.
        topic: None if the vault does not know it any more, because the block of the run was erased.
        epsilon: ε of this run alone, at δ = 1e-5.
        release: digest of the release that it was trained on; "" if unknown.
        sampling_rate: sampling rate of its steps.
        noise_multiplier: noise multiplier of its steps.
        steps: number of steps.
        state: open, finished, failed, erased, or lost (spends that a restored backup may lack).
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
    """The budget of a topic in a policy."""

    @property
    def epsilon(self) -> float:
        """The greatest ε that a record of the topic may spend."""
        ...

    @property
    def delta(self) -> float:
        """The δ of this ε."""
        ...


@dataclass(frozen=True)
class TopicSpent:
    """A topic and its budget.

    Attributes:
        topic: name of the topic.
        budget: its budget in the policy; None if the policy does not know the topic.
        delta: the δ of both figures.
        epsilon: the greatest ε of a record that the topic holds now.
        left: the budget minus `epsilon`, at least 0; 0 without a budget.
    """

    topic: str
    budget: float | None
    delta: float
    epsilon: float
    left: float


@dataclass(frozen=True)
class LifetimeSpent:
    """The account of a device over all federations that it answered.

    Attributes:
        epsilon: ε of all of them together, against readers of released anchors; infinite if it is not bounded.
        delta: the δ of this ε.
        budget: the greatest ε that the device's policy allows.
        left: the budget minus `epsilon`, at least 0.
        federations: number of plans that the device answered and was charged for.
        adjacency: the change that ε protects.
    """

    epsilon: float
    delta: float
    budget: float
    left: float
    federations: int
    adjacency: str


@dataclass(frozen=True)
class Statement:
    """The content of a privacy report.

    Attributes:
        vault: id of the vault.
        simulated: True for a simulated vault.
        delta: the δ of the subject's ε.
        epsilon_pld: the subject's ε by PLD. None if `dp-accounting` is not installed; then topics and runs are by RDP.
        epsilon_rdp: the subject's ε by RDP.
        topics: the topics and their budgets.
        runs: all training runs, oldest first.
        events: number of events of the ledger.
        head: digest of the last event; "" if there is none.
        noted: number of events that the keystore vouches for; None if it has no note of the ledger.
        unit: the protected unit.
        adjacency: the change that ε protects.
        mechanism: the mechanism of a step.
        public: the facts that are taken as public.
        not_covered: the risks that no figure covers.
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
    """Return every run with its own ε at δ = 1e-5, in the order of the ledger.

    Args:
        events: events of the ledger.
        topics: run id -> name of the topic, for the runs whose topic is known.
        accountant: computes ε.

    Raises:
        VerificationFailed: the ledger contradicts itself, as in `states`.
    """
    run_states = states(events)
    return [
        Spent(
            charge.run,
            charge.block,
            topics.get(charge.run),
            accountant([charge.spend], DELTA),
            charge.release,
            charge.spend.sampling_rate,
            charge.spend.noise_multiplier,
            charge.spend.steps,
            run_states[charge.run],
        )
        for charge in charges(events)
    ]


def topics_spent(
    events: Sequence[LedgerEvent],
    budgets: Mapping[str, TopicBudget],
    names: Collection[str],
    records: Callable[[str], Collection[str]],
    accountant: Accountant,
) -> list[TopicSpent]:
    """Return the topics of the policy, then the other topics of the vault, with their figures.

    Args:
        events: events of the ledger.
        budgets: topic -> budget, of the policy.
        names: the topics of the vault.
        records: gives the ids of the records that a topic holds now.
        accountant: computes ε.

    Raises:
        VerificationFailed: a spend cannot be read.
    """
    topics = []
    for name in (*budgets, *sorted(set(names) - budgets.keys())):
        budget = budgets.get(name)
        delta = budget.delta if budget else DELTA
        topics.append(topic_spent(name, budget, greatest_epsilon(events, records(name), delta, accountant)))
    return topics


def topic_spent(name: str, budget: TopicBudget | None, epsilon: float) -> TopicSpent:
    """Return the figures of one topic from its budget (None without one) and its spent ε."""
    limit, delta = (budget.epsilon, budget.delta) if budget else (None, DELTA)
    return TopicSpent(name, limit, delta, epsilon, max(0.0, (limit or 0.0) - epsilon))
