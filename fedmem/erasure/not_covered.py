"""The sentences about copies and places that an erasure does not reach.

Invariants
- A receipt lists them all. A plan lists the same, as far as they are known before the erasure.
- A sentence names copies by random ids, never by their paths. No sentence depends on the scope: it is not public.

    predicted(vault.core, planned.items)     # before the erasure
    remaining(vault.core, entry.items)       # after it
"""

from collections.abc import Iterable

from fedmem.vault.backup.backup_registry import KIT, in_reach, out_of_reach, registered_copies
from fedmem.vault.store.content_stores import StoredItem
from fedmem.vault.store.core import Core

ALWAYS = (
    "file-system snapshots, cloud synchronisation and copies of the disk made before",
    "swap, hibernation images, core dumps and memory of running processes",
    "cells of the storage device that it no longer addresses",
    "older copies of the key slots together with older copies of the vault",
    "copies of keys that a keyring synchronised to other devices",
    "further copies of backups and recovery kits, beside their recorded places",
    "exported copies and backups made by the subject",
    "answers and texts that an app received from the vault and kept",
    "what other devices hold or learned while this one was connected",
    "after an erasure of the whole subject: its name, sealed, and the name of its folder, until `fedmem vault remove`",
)


def predicted(core: Core, items: Iterable[StoredItem]) -> list[str]:
    """Return the sentences for a plan: what an erasure of `items` would not reach.

    Args:
        core: an open vault.
        items: the items of the plan.

    Returns:
        Sentences without content. Registered copies that are out of reach are named by id.
    """
    reachable_ids = {copy.id for copy in in_reach(core)}
    return _lines([copy.id for copy in registered_copies(core) if copy.id not in reachable_ids], items)


def remaining(core: Core, items: Iterable[StoredItem]) -> list[str]:
    """Return the sentences for a receipt: what the erasure of `items` did not reach.

    Args:
        core: an open vault, after the items were destroyed.
        items: the erased items.

    Returns:
        Sentences without content. Retired copies that still exist, or may exist, are named by id.
    """
    return _lines(out_of_reach(core), items)


def _lines(unreached_ids: Iterable[str], items: Iterable[StoredItem]) -> list[str]:
    unreached = [f"backup or recovery kit {copy}, which was made before and is out of reach" for copy in unreached_ids]
    kits = [
        f"further copies of recovery kit {item.id}: with its code, each opens copies of the vault of its time"
        for item in items
        if item.kind == KIT
    ]
    return [*ALWAYS, *sorted(unreached), *kits]
