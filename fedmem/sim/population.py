"""Build the population of a run: the coordinator's public text, each device's records, and held-out text of both kinds.

Invariants
- A population is a function of scenario, seed and, if given, the user's file. It is equal in every process.
- Private text stays in memory. This module writes nothing.
- `generated` is true only where every private record was generated here. With people's chats it is false. Only
  generated text gets seeded noise (docs/design.md, §7).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedmem.errors import UsageError
from fedmem.policy.policy import Decision, Policy
from fedmem.routing.embedder import Embedder
from fedmem.sim.scenario import Scenario
from fedmem.sim.sources import chats, patients, persons, userfile, wikipedia
from fedmem.sim.sources.record import SourceRecord
from fedmem.storage.canonical import digest


@dataclass(frozen=True)
class PopulationItem:
    """A record on a device.

    Attributes:
        text: the text.
        declared: the private topic that its owner names; None for none.
    """

    text: str
    declared: str | None = None


@dataclass(frozen=True)
class Population:
    """All text of a run.

    Attributes:
        coordinator: the public text of the coordinator.
        heldout: the held-out public text.
        devices: the records of each device.
        private_heldout: held-out private text, by device and topic.
        learned: the pairs (device, topic) that become private blocks; each of them has text in `private_heldout`.
        generated: True if every private record was generated here.
        attribution: the sources of the text.
    """

    coordinator: list[str]
    heldout: list[str]
    devices: list[list[PopulationItem]]
    private_heldout: dict[tuple[int, str], list[str]]
    learned: list[tuple[int, str]]
    generated: bool
    attribution: list[str]


@dataclass(frozen=True)
class Placed:
    """The records of a device with the policy's decisions.

    Attributes:
        items: the records, N of them.
        decisions: the decision about each record.
        vectors_ND: the vector of each record.
    """

    items: list[PopulationItem]
    decisions: list[Decision]
    vectors_ND: np.ndarray

    def shareable(self) -> list[str]:
        """Return the texts that may take part in federated training."""
        return [item.text for item, d in zip(self.items, self.decisions, strict=True) if d.placement == "shared"]


def derive_seed(seed: int, *labels: object) -> int:
    """Return a 63-bit seed for one use; it is independent of the seeds for other labels.

    Args:
        seed: the seed of the run.
        labels: the use; different labels give independent seeds.
    """
    return int(digest([seed, *map(str, labels)])[:16], 16) >> 1


def build(scenario: Scenario, seed: int, corpus: Path | None, policy: Policy) -> Population:
    """Return the population of a run, from the scenario's sources or from the user's own file.

    The policy decides which of the user's records are shared. Shared records go to the coordinator, the devices and the
    held-out part, by the scenario's shares. Private records stay on their device; a tenth of each topic is held out, or
    the records that the file marks.

    Args:
        scenario: the scenario of the run.
        seed: the seed of the run.
        corpus: the user's JSONL file, or a folder of them; None for the scenario's own sources.
        policy: the policy that places the user's records.

    Raises:
        UsageError: a corpus cannot be read, a package is missing, or too few records are shared.
    """
    if corpus:
        return _user_population(scenario, seed, userfile.load(corpus), policy)
    return (
        _people_population(scenario, seed)
        if scenario.public.source == "chats"
        else _generated_population(scenario, seed)
    )


def place(items: Sequence[PopulationItem], policy: Policy, embedder: Embedder) -> Placed:
    """Embed the records of a device and decide where each one is placed.

    Args:
        items: the records of one device.
        policy: decides where each record is placed.
        embedder: computes the vectors by which the policy decides.
    """
    texts = [item.text for item in items]
    vectors_ND = embedder.embed(texts)
    return Placed(list(items), policy.place_many(texts, [item.declared for item in items]), vectors_ND)


def _private_texts(topic: str, count: int, seed: int) -> list[str]:
    records = patients.generate(count, seed=seed) if topic == "health" else persons.generate(topic, count, seed=seed)
    return [record.text for record in records]


def _split_wikipedia(scenario: Scenario, seed: int) -> wikipedia.WikipediaSplit:
    public, documents = scenario.public, wikipedia.load()
    return wikipedia.split(
        documents[:: max(1, len(documents) // public.documents)] if public.documents else documents,
        devices=public.devices,
        seed=derive_seed(seed, "split") % 2**32,
        coordinator_share=public.coordinator_share,
        heldout_share=public.heldout_share,
        concentration=public.concentration,
    )


def _people_population(scenario: Scenario, seed: int) -> Population:
    """Return a population whose devices are people; the coordinator's text is its share of Wikipedia."""
    split = chats.deal_people(
        chats.load(),
        devices=scenario.public.devices,
        heldout_share=scenario.public.heldout_share,
        seed=derive_seed(seed, "people") % 2**32,
    )
    return Population(
        coordinator=[document.text for document in _split_wikipedia(scenario, seed).coordinator],
        heldout=list(split.heldout),
        devices=[[PopulationItem(text) for text in records] for records in split.devices],
        private_heldout={},
        learned=[],
        generated=False,
        attribution=[wikipedia.ATTRIBUTION, chats.ATTRIBUTION],
    )


def _generated_population(scenario: Scenario, seed: int) -> Population:
    split = _split_wikipedia(scenario, seed)
    devices = [[PopulationItem(document.text) for document in documents] for documents in split.devices]
    heldout: dict[tuple[int, str], list[str]] = {}
    for private in scenario.private:
        for device in private.devices:
            texts = _private_texts(
                private.topic,
                private.records + private.heldout,
                derive_seed(seed, "private", device, private.topic) % 2**32,
            )
            devices[device] += [PopulationItem(text, private.topic) for text in texts[: private.records]]
            heldout[device, private.topic] = texts[private.records :]
    attribution = [wikipedia.ATTRIBUTION, *([patients.ATTRIBUTION, persons.ATTRIBUTION] if scenario.private else [])]
    return Population(
        coordinator=[document.text for document in split.coordinator],
        heldout=[document.text for document in split.heldout],
        devices=devices,
        private_heldout=heldout,
        learned=sorted(heldout, key=lambda key: key[0]),
        generated=True,
        attribution=attribution,
    )


def _user_population(scenario: Scenario, seed: int, records: list[SourceRecord], policy: Policy) -> Population:
    decisions = policy.place_many([r.text for r in records], declared=[r.topic for r in records])
    rng, public = np.random.default_rng(derive_seed(seed, "user")), scenario.public
    coordinator, heldout = list[str](), list[str]()
    devices = [list[PopulationItem]() for _ in range(public.devices)]
    private: dict[tuple[int, str], list[SourceRecord]] = {}
    for number, (record, decision) in enumerate(zip(records, decisions, strict=True)):
        device = _device(record, number, public.devices)
        draw = rng.random()
        if decision.topic is not None:
            private.setdefault((device, decision.topic), []).append(record)
        elif record.split == "heldout" or draw < public.heldout_share:
            heldout.append(record.text)
        elif draw < public.heldout_share + public.coordinator_share:
            coordinator.append(record.text)
        else:
            devices[device].append(PopulationItem(record.text))
    if not coordinator or not heldout:
        raise UsageError(
            "The corpus has too few records that the policy places as shared; add public text, or use more."
        )
    private_heldout = {}
    for (device, topic), topic_records in sorted(private.items()):
        heldout_records = [r for r in topic_records if r.split == "heldout"] or topic_records[::10]
        devices[device] += [PopulationItem(r.text, topic) for r in topic_records if r not in heldout_records]
        private_heldout[device, topic] = [r.text for r in heldout_records]
    learned = [key for key in sorted(private_heldout) if any(item.declared == key[1] for item in devices[key[0]])]
    return Population(coordinator, heldout, devices, private_heldout, learned, False, [userfile.ATTRIBUTION])


def _device(record: SourceRecord, number: int, devices: int) -> int:
    """Return the device of a record: by the hash of the name that the record gives, otherwise in turn."""
    return int(digest(record.device)[:8], 16) % devices if record.device else number % devices
