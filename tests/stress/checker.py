"""Decide from the journals whether a vault holds what it must hold, and nothing that it must not hold.

Invariants
- A call that was acknowledged has its effect; one that failed has none; one without an outcome has it whole or not.
- The rules are pure. `read_vault` reads what they judge.
- `before` are the calls that were asked before the vault was read, `after` those that were asked before the reading
  ended. So a vault can be judged while workers change it.

    faults = judge(before, read_vault(vault), after)
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from fedmem.vault.vault import ALL, Vault
from tests.stress import content
from tests.stress.journal import FAILED, OK, UNKNOWN, Call

ALARMS = ("VerificationFailed", "RolledBack", "KeystoreError", "StorageError", "VersionMismatch")
"""Errors that say that a vault or its disk is damaged. On a sound disk they are wrong."""


@dataclass(frozen=True)
class Contents:
    """The content of a vault.

    Attributes:
        records: id -> digest of the text; "mixed up" if the rest of the record does not belong to it.
        blocks: id -> digest of the rows.
        keyed: ids of everything that has a data key.
        charged: ids of the runs in the privacy ledger.
    """

    records: dict[str, str]
    blocks: dict[str, str]
    keyed: frozenset[str]
    charged: frozenset[str]


@dataclass(frozen=True)
class Faults:
    """Sentences about what is wrong, by kind; each names ids only."""

    lost: tuple[str, ...] = ()
    erased_left: tuple[str, ...] = ()
    torn: tuple[str, ...] = ()
    unasked: tuple[str, ...] = ()

    def __add__(self, other: "Faults") -> "Faults":
        return Faults(*(mine + theirs for mine, theirs in zip(self.parts(), other.parts(), strict=True)))

    def parts(self) -> tuple[tuple[str, ...], ...]:
        """Return the sentences of each kind."""
        return self.lost, self.erased_left, self.torn, self.unasked


def read_vault(vault: Vault) -> Contents:
    """Return the content of an open vault."""
    records = {
        record.id: "mixed up" if content.is_mixed_up(record) else content.digest_of(record.text)
        for record in vault.records(ALL)
    }
    blocks = {block.id: content.digest_of(vault.block_rows(block.id).decode()) for block in vault.blocks()}
    charged = (event.payload.get("run") for event in vault.ledger.events() if event.kind == "spend")
    return Contents(records, blocks, vault.ids_of(ALL), frozenset(map(str, charged)))


def judge(before: Sequence[Call], stored: Contents, after: Sequence[Call], *, is_final: bool = False) -> Faults:
    """Return the faults of a vault's content.

    Args:
        before: the calls up to the moment at which the reading began.
        stored: the content.
        after: the calls up to the moment at which it ended.
        is_final: True if nobody uses the vault any more, and unfinished erasures were resumed.
    """
    gone = covered(before, partial=is_final)
    perhaps = covered(after, partial=True) | covered(after, outcomes=(UNKNOWN,))
    lost = chain(_lost(before, stored, perhaps), _uncharged(before, stored))
    left = chain(_left(gone, stored), _copied(before, gone, stored))
    torn = chain(_torn_batches(before, stored, perhaps), _torn_erasures(before, stored, gone) if is_final else ())
    return Faults(tuple(lost), tuple(left), tuple(torn), tuple(_unasked(before, after, stored)))


def covered(calls: Iterable[Call], *, outcomes: tuple[str, ...] = (OK,), partial: bool = False) -> frozenset[str]:
    """Return the ids that erasures covered: those with one of the outcomes and, if `partial`, the begun ones."""
    erasures = [call for call in calls if call.op == "erase"]
    begun = [call for call in erasures if call.outcome in outcomes or (partial and is_partial(call))]
    return frozenset(chain.from_iterable(call.asked["ids"] for call in begun))


def is_partial(call: Call) -> bool:
    """Return True if an erasure was left partial: it has begun, and another process completes it."""
    return call.outcome == FAILED and call.result["type"] == "PartialErasure"


def acknowledged(calls: Iterable[Call]) -> dict[str, str]:
    """Return id -> digest of the records whose addition was acknowledged."""
    added = (call for call in calls if call.op == "add" and call.outcome == OK)
    pairs = (zip(call.result["ids"], call.asked["digests"], strict=True) for call in added)
    return dict(chain.from_iterable(pairs))


def _lost(calls: Sequence[Call], stored: Contents, perhaps: frozenset[str]) -> Iterator[str]:
    for item, digest in acknowledged(calls).items():
        if item not in perhaps and stored.records.get(item) != digest:
            yield f"record {item} is {'changed' if item in stored.records else 'missing'}"
    for call in calls:
        if call.op == "finish" and call.outcome == OK:
            block = call.result["block"]
            if block not in perhaps and stored.blocks.get(block) != call.asked["digest"]:
                yield f"block {block} is {'changed' if block in stored.blocks else 'missing'}"


def _left(gone: frozenset[str], stored: Contents) -> Iterator[str]:
    for item in sorted(gone & (stored.keyed | {*stored.records, *stored.blocks})):
        yield f"{item} of an erasure is there"


def _copied(calls: Sequence[Call], gone: frozenset[str], stored: Contents) -> Iterator[str]:
    erased = {digest for item, digest in acknowledged(calls).items() if item in gone}
    for item, digest in stored.records.items():
        if digest in erased and item not in gone:
            yield f"record {item} has the text of an erased one"


def _uncharged(calls: Sequence[Call], stored: Contents) -> Iterator[str]:
    for call in calls:
        if call.op == "begin" and call.outcome == OK and call.result["run"] not in stored.charged:
            yield f"the charge of run {call.result['run']} is missing"


def _torn_batches(calls: Sequence[Call], stored: Contents, perhaps: frozenset[str]) -> Iterator[str]:
    present = {*stored.records.values()}
    for call in calls:
        if call.op == "add" and call.outcome == UNKNOWN:
            count = sum(digest in present for digest in call.asked["digests"])
            if count not in (0, len(call.asked["digests"])):
                yield f"{count} of {len(call.asked['digests'])} records of a batch are there"


def _torn_erasures(calls: Sequence[Call], stored: Contents, gone: frozenset[str]) -> Iterator[str]:
    unknown = [call for call in calls if call.op == "erase" and call.outcome == UNKNOWN]
    times = Counter(chain.from_iterable({*call.asked["ids"]} for call in unknown))
    added = acknowledged(calls)
    for call in unknown:
        ids = [item for item in call.asked["ids"] if item in added and item not in gone and times[item] == 1]
        count = sum(item in stored.records for item in ids)
        if count not in (0, len(ids)):
            yield f"{count} of {len(ids)} records of an interrupted erasure are there"


def _unasked(before: Sequence[Call], after: Sequence[Call], stored: Contents) -> Iterator[str]:
    """Yield a sentence for each record that failed, that nobody asked for, or that is there twice."""
    refused = _digests(call for call in before if call.outcome == FAILED)
    asked = _digests(after)
    times = Counter(stored.records.values())
    for item, digest in stored.records.items():
        if digest in refused:
            yield f"record {item} is there, though its addition failed"
        elif digest not in asked or times[digest] > 1:
            yield f"record {item} was not asked for, is there twice, or is mixed up"


def _digests(calls: Iterable[Call]) -> set[str]:
    """Return the digests of the texts that calls asked to add."""
    return set(chain.from_iterable(call.asked["digests"] for call in calls if call.op == "add"))


def judge_answers(calls: Sequence[Call]) -> Faults:
    """Return the faults of the answers that workers got: erased records, missing ones, and mixed-up texts."""
    erased_at: dict[str, float] = {}
    for call in calls:
        if call.op == "erase" and call.outcome == OK:
            erased_at |= {item: min(call.ended, erased_at.get(item, call.ended)) for item in call.asked["ids"]}
    begun = covered(calls, outcomes=(OK, UNKNOWN), partial=True)
    digests = acknowledged(calls)
    lost, left = [], []
    for call in calls:
        for item, digest in call.result.get("found", {}).items():
            if erased_at.get(item, call.ended) < call.begun:
                left.append(f"{call.op} gave {item} after its erasure")
            if digests.get(item, digest) != digest:
                lost.append(f"{call.op} gave another text for {item}")
        if call.op == "read" and call.result.get("type") == "NothingMatched" and begun.isdisjoint(call.asked["ids"]):
            lost.append(f"a thread did not find its own records {call.asked['ids']}")
    inherited = [call for call in calls if call.op == "inherited" and call.outcome == OK]
    return Faults(tuple(lost), tuple(left), (), ("a forked child used what it inherited",) * len(inherited))
