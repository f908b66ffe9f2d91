"""Collect the facts of a ledger about privacy: terms of the guarantee, the subject's ε, topics and runs.

Invariants
- Every ε is computed from the given events. Nothing is stored, and no clock is read.
- The ε of a topic is the figure that the gate compares with its budget: the greatest ε of a record that it holds now.
- A second figure is for a person whose text was erased and added again. The ledger counts records, and no trace of an
  erased text is kept, so the same text is a new record. This figure composes all trainings of a topic, and all whose
  topic an erasure took away.
- ε of a run stands at the δ of its plan; that of the subject at the smallest δ of any plan that the vault still knows.
- Every statement lists what its figures do not cover.

    | case | result |
    |---|---|
    | no event | ε 0 everywhere |
    | a run without noise, or spends that a restored backup may lack | ε infinite, nothing left |
    | a topic that the policy does not know | no budget, nothing left |

>>> from types import SimpleNamespace
>>> topic_spent("health", SimpleNamespace(epsilon=8.0, delta=1e-5), 2.0, 3.0)
TopicSpent(topic='health', budget=8.0, delta=1e-05, epsilon=2.0, left=6.0, epsilon_readded=3.0)
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedmem.privacy.ledger import (
    Accountant,
    Charge,
    LedgerEvent,
    State,
    greatest_epsilon,
    read_charges,
    read_run_states,
    subject_epsilon,
)
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
    "A text that was erased and added again: it is a new record, and the figure for every record counts it as one. Of "
    "such a text the second figure holds, which composes all trainings of a topic.",
    "Copies outside the vault, this report among them, and blocks that were exported.",
    "A copy of the vault together with its keystore: put back as a whole it has forgotten what was spent since, and "
    "nothing in it can tell. An older copy of the vault alone is noticed.",
    "Traffic: that the device is connected, and when; how long an answer takes in all.",
    "Blocks: that a private block exists, how large its file is and when it changed.",
    "The file run.json of a simulation: it holds the exact number of replies of every round.",
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
        epsilon: ε of this run alone, at `delta`.
        release: digest of the release that it was trained on; "" if unknown.
        sampling_rate: sampling rate of its steps.
        noise_multiplier: noise multiplier of its steps.
        steps: number of steps.
        state: open, finished, failed, erased, or lost (spends that a restored backup may lack).
        delta: the δ of its plan; 1e-5 if an erasure took the plan away.
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
    delta: float


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
        epsilon_readded: ε of a person whose text was erased and added again: all trainings of the topic composed, and
            all whose topic is not known.
    """

    topic: str
    budget: float | None
    delta: float
    epsilon: float
    left: float
    epsilon_readded: float


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
        epsilon_readded: ε of a person whose text was erased and added again: the greatest of any topic.
        topics: the topics and their budgets.
        runs: all training runs, oldest first.
        lifetime: the account of the device over all its federations.
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
    epsilon_readded: float
    topics: list[TopicSpent]
    runs: list[Spent]
    lifetime: LifetimeSpent
    events: int
    head: str
    noted: int | None
    unit: str = UNIT
    adjacency: str = ADJACENCY
    mechanism: str = MECHANISM
    public: tuple[str, ...] = PUBLIC
    not_covered: tuple[str, ...] = NOT_COVERED


def runs_spent(
    events: Sequence[LedgerEvent], topics: Mapping[str, str], deltas: Mapping[str, float], accountant: Accountant
) -> list[Spent]:
    """Return every run with its own ε at the δ of its plan, in the order of the ledger.

    Args:
        events: events of the ledger.
        topics: run id -> name of the topic, for the runs whose topic is known.
        deltas: run id -> δ of the plan, for the runs whose plan is known; the others get 1e-5.
        accountant: computes ε.

    Raises:
        VerificationFailed: the ledger contradicts itself, as in `read_run_states`.
    """
    run_states = read_run_states(events)
    return [
        Spent(
            charge.run,
            charge.block,
            topics.get(charge.run),
            accountant([charge.spend], deltas.get(charge.run, DELTA)),
            charge.release,
            charge.spend.sampling_rate,
            charge.spend.noise_multiplier,
            charge.spend.steps,
            run_states[charge.run],
            deltas.get(charge.run, DELTA),
        )
        for charge in read_charges(events)
    ]


def topics_spent(
    events: Sequence[LedgerEvent],
    budgets: Mapping[str, TopicBudget],
    topics: Mapping[str, str],
    records: Callable[[str], Collection[str]],
    accountant: Accountant,
) -> list[TopicSpent]:
    """Return the topics of the policy, then the other topics of the vault, with their figures.

    Args:
        events: events of the ledger.
        budgets: topic -> budget, of the policy.
        topics: run id -> name of the topic, for the runs whose topic is known.
        records: gives the ids of the records that a topic holds now.
        accountant: computes ε.

    Raises:
        VerificationFailed: a spend cannot be read.
    """
    rows = []
    for name in (*budgets, *sorted(set(topics.values()) - budgets.keys())):
        budget = budgets.get(name)
        delta = budget.delta if budget else DELTA
        ids = records(name)
        readded = readded_epsilon(events, topics, name, ids, delta, accountant)
        rows.append(topic_spent(name, budget, greatest_epsilon(events, ids, delta, accountant), readded))
    return rows


def readded_epsilon(
    events: Sequence[LedgerEvent],
    topics: Mapping[str, str],
    topic: str,
    records: Collection[str],
    delta: float,
    accountant: Accountant,
) -> float:
    """Return ε of a person whose text stood in `topic`, was erased and added again, any number of times.

    Guarantees: an upper bound for a text that was in any of the topic's trainings, under whatever record id, and never
    below the figure of a record of the topic. Trainings whose topic or whose records are not known count.

    Args:
        events: events of the ledger.
        topics: run id -> name of the topic, for the runs whose topic is known.
        topic: name of the topic.
        records: ids of the records that the topic holds now.
        delta: strictly between 0 and 1.
        accountant: composes the spends.

    Raises:
        VerificationFailed: a spend cannot be read.
    """
    ids = frozenset(records)

    def may_count(charge: Charge) -> bool:
        return charge.records is None or topics.get(charge.run, topic) == topic or bool(charge.records & ids)

    return accountant([charge.spend for charge in read_charges(events) if may_count(charge)], delta)


def greatest_readded_epsilon(
    events: Sequence[LedgerEvent], topics: Mapping[str, str], delta: float, accountant: Accountant
) -> float:
    """Return the greatest `readded_epsilon` of any topic, an unknown one included; never below that of a record.

    Args:
        events: events of the ledger.
        topics: run id -> name of the topic, for the runs whose topic is known.
        delta: strictly between 0 and 1.
        accountant: composes the spends.

    Raises:
        VerificationFailed: a spend cannot be read.
    """
    names = {*topics.values(), ""}
    readded = max(readded_epsilon(events, topics, name, (), delta, accountant) for name in names)
    return max(readded, subject_epsilon(events, delta, accountant))


def topic_spent(name: str, budget: TopicBudget | None, epsilon: float, epsilon_readded: float) -> TopicSpent:
    """Return the figures of one topic.

    Args:
        name: name of the topic.
        budget: its budget in the policy, or None.
        epsilon: the greatest ε of a record that the topic holds now.
        epsilon_readded: its `readded_epsilon`.
    """
    limit, delta = (budget.epsilon, budget.delta) if budget else (None, DELTA)
    return TopicSpent(name, limit, delta, epsilon, max(0.0, (limit or 0.0) - epsilon), epsilon_readded)
