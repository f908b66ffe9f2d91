"""Blocks and erasures of a vault, for the client and the command line.

Invariants
- An erasure is first planned, without side effects. It is executed with the digest of that plan.
- `execute` erases, scans again and returns the receipt. A partial or unverified erasure is an error, never a result.

    planned = client.erase.plan(topic="health")
    print(planned.counts)
    print(planned.execute().receipt)
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fedmem import erasure
from fedmem.errors import Refused, UsageError, VerificationFailed
from fedmem.policy.policy import Policy
from fedmem.vault.vault import BlockInfo, Vault

if TYPE_CHECKING:
    from fedmem.training.release import Release


__all__ = ["Blocks", "Erase", "Erased", "PlannedErasure"]


class Blocks:
    """The private blocks of a vault.

    Args:
        vault: The open vault.
        policy: The policy, which has the budgets for `migrate`.
    """

    def __init__(self, vault: Vault, policy: Policy | None = None) -> None:
        self._vault, self._policy = vault, policy

    def list(self) -> list[BlockInfo]:
        """Return all blocks in all versions, oldest first."""
        return self._vault.blocks()

    def get(self, id_or_topic: str) -> BlockInfo:
        """Return a block by its id, or the newest block of a topic.

        Args:
            id_or_topic: Id of a block, or a topic.

        Raises:
            NothingMatched: There is no such block.
        """
        return self._vault.block(id_or_topic)

    def migrate(self, id_or_topic: str, release: "str | Path | Release") -> BlockInfo:
        """Train a new version of a block for another release, with the plan of the old block.

        The training is charged to the topic's budget. The old block stays and serves its own release.

        Args:
            id_or_topic: Id of a block, or a topic for its newest block.
            release: Folder of the new release, or a loaded release.

        Returns:
            The new block.

        Raises:
            NothingMatched: There is no such block.
            BudgetExceeded: The topic's budget is too small. Nothing is charged.
            Refused: There is no policy, or the block cannot be trained again. `fedmem.device.training_sessions.migrate`
                lists the reasons.
        """
        from fedmem.device.training_sessions import migrate
        from fedmem.sdk.opening import open_release

        if self._policy is None:
            raise Refused("Moving a block needs the policy with its topic's budget. Open the vault with Client.open.")
        result = migrate(self._vault, id_or_topic, open_release(release), self._policy)
        return self._vault.block(result.block or "")


@dataclass(frozen=True)
class Erased:
    """A finished and verified erasure.

    Attributes:
        id: Id of the erasure.
        state: `completed`.
        receipt: File of the signed receipt. The vault's `device.pub` verifies it.
        verified: True: the rescan found nothing.
        counts: Number of erased items by kind.
        items: Number of erased items by store.
        not_covered: Copies that the erasure cannot reach.
        opening: Opening of the receipt's commitment to the scope, 64 hexadecimal digits. The vault keeps it sealed
            until `Erase.confirm_delivery`.
        retrained: Ids of the blocks that were trained anew.
    """

    id: str
    state: str
    receipt: Path
    verified: bool
    counts: dict[str, int]
    items: dict[str, int]
    not_covered: list[str]
    opening: str
    retrained: list[str]


class PlannedErasure:
    """A planned erasure. Nothing is changed before `execute`.

    Attributes:
        digest: Digest of this plan, hexadecimal.
        counts: Number of items in scope by kind. Backups and recovery kits that the erasure removes are counted too.
        items: Number of items in scope by store.
        not_covered: Copies and places that the erasure does not reach.
        blocks: Ids of the blocks that learned a record of the scope and are erased too.
        retrained: Number of blocks that are trained anew in their place.

    Args:
        vault: The open vault.
        plan: The plan of the engine.
        retrain: Trains blocks anew; None if the plan retrains none.
    """

    def __init__(self, vault: Vault, plan: erasure.Plan, retrain: erasure.Retrain | None = None) -> None:
        self._vault, self._plan, self._retrain = vault, plan, retrain
        self.digest = plan.digest
        self.counts = plan.counts
        self.items = dict(Counter(item.store for item in plan.items))
        self.not_covered = erasure.not_covered.predicted(vault.core, plan.items)
        self.blocks, self.retrained = list(plan.deleted), len(plan.retrain)

    def execute(self, digest: str | None = None) -> Erased:
        """Execute the plan: delete, scan again, check the receipt, and train blocks anew.

        Args:
            digest: Digest of the plan that a person saw. The default is the digest of this plan.

        Returns:
            The finished erasure with its receipt.

        Raises:
            Refused: The plan no longer holds, because the vault changed. Nothing was deleted.
            BudgetExceeded: A block cannot be trained anew. Nothing was deleted.
            PartialErasure: The erasure began and could not finish. `Erase.resume` continues it.
            VerificationFailed: The rescan finds something, or the receipt does not verify.
            StorageError: The disk failed.
        """
        outcome = erasure.execute(self._vault, self._plan, digest or self.digest, retrain=self._retrain)
        if not erasure.verify(self._vault, outcome.id).is_clean:
            raise VerificationFailed(
                f"Erasure {outcome.id} ran, but a rescan finds something. `fedmem erase verify {outcome.id}` lists it."
            )
        key = (self._vault.root / "device.pub").read_bytes()
        statement = erasure.receipt.verify(outcome.receipt_path.read_bytes(), key)
        not_covered = [str(line) for line in statement["predicate"]["not_covered"]]
        return Erased(
            id=outcome.id,
            state=outcome.state,
            receipt=outcome.receipt_path,
            verified=True,
            counts=self.counts,
            items=self.items,
            not_covered=not_covered,
            opening=outcome.opening,
            retrained=list(outcome.retrained),
        )


class Erase:
    """The erasures of a vault.

    Args:
        vault: The open vault.
        retrain: Trains blocks anew without erased records. None: no block can be trained anew.
    """

    def __init__(self, vault: Vault, retrain: erasure.Retrain | None = None) -> None:
        self._vault, self._retrain = vault, retrain

    def plan(
        self,
        *,
        block: str | None = None,
        topic: str | None = None,
        record: Sequence[str] | None = None,
        before: datetime | None = None,
        due: bool = False,
        subject: bool = False,
        blocks: erasure.Choice | None = None,
    ) -> PlannedErasure:
        """Plan the erasure of exactly one scope. Nothing is changed.

        Args:
            block: Id of a block, or its topic. The scope is every version of the block, and the records, vectors and
                run keys of its topic.
            topic: A topic, with or without a block. The scope is the same.
            record: Ids of records.
            before: A time. The scope is the records that were added before it.
            due: The records that are older than `keep` allows.
            subject: Everything of this subject, except the ledger.
            blocks: Action for blocks that learned an erased record: `retrain` trains them anew without it, `delete`
                deletes them.

        Raises:
            UsageError: Not exactly one scope is given.
            NothingMatched: The vault holds nothing in the scope.
            BudgetExceeded: A block cannot be trained anew within its topic's budget.
            Refused: A block cannot be trained anew for another reason.
        """
        scopes = [erasure.Scope.block(block)] if block is not None else []
        scopes += [erasure.Scope.topic(topic)] if topic is not None else []
        scopes += [erasure.Scope.record(*record)] if record is not None else []
        scopes += [erasure.Scope.before(before)] if before is not None else []
        scopes += [erasure.Scope.due()] if due else []
        scopes += [erasure.Scope.subject()] if subject else []
        if len(scopes) != 1:
            raise UsageError(
                "Name exactly one scope to erase: a block, a topic, records, a date, the due records, or the subject."
            )
        plan = erasure.plan(self._vault, scopes[0], blocks=blocks)
        if self._retrain is not None:
            for retraining in plan.retrain:
                self._retrain.check(self._vault, retraining)
        return PlannedErasure(self._vault, plan, self._retrain)

    def keep(self, topic: str, days: float | None) -> None:
        """Set how long records of a topic are kept. This deletes nothing: `plan(due=True)` selects older records.

        Args:
            topic: Name of the topic.
            days: Number of days, or None for no limit.

        Raises:
            UsageError: The number of days is not valid.
        """
        self._vault.keep(topic, days)

    def kept(self) -> dict[str, float]:
        """Return topic -> days, for the topics with a limit."""
        return self._vault.retention()

    def verify(self, erasure_id: str, *, deep: bool = False) -> erasure.Verification:
        """Check that nothing of an erasure is left in the vault.

        Args:
            erasure_id: Id of the erasure.
            deep: Read every byte below the vault's folder.

        Returns:
            The remains by store; `clean` is True if there are none.

        Raises:
            NothingMatched: There is no such erasure.
        """
        return erasure.verify(self._vault, erasure_id, deep=deep)

    def opening(self, erasure_id: str) -> str:
        """Return the opening of an erasure's receipt, 64 hexadecimal digits.

        Args:
            erasure_id: Id of the erasure.

        Raises:
            NothingMatched: The id is unknown, or the vault does not hold the opening, since its delivery was confirmed.
        """
        return erasure.openings.read(self._vault, erasure_id)

    def items(self, erasure_id: str) -> list[str]:
        """Return the list of the items of an erasure: one line of JSON for each item, in the order of the receipt.

        A line is a list: store, random id, kind, SHA-256 (hex) of the ciphertext, and its salt (hex). The receipt of a
        large erasure holds the Merkle root over these lines.

        Args:
            erasure_id: Id of the erasure.

        Raises:
            NothingMatched: The id is unknown, or the list is missing.
            VerificationFailed: The list was changed.
        """
        return [line.decode() for line in erasure.item_lines(self._vault, erasure_id)]

    def confirm_delivery(self, erasure_id: str) -> None:
        """Remove the sealed opening of an erasure from the vault. Call it when the person has the opening.

        Args:
            erasure_id: Id of the erasure.

        Raises:
            NothingMatched: The id is unknown.
            StorageError: The disk failed. The opening stays.
            Busy: Another program writes to the vault. The opening stays.
        """
        erasure.openings.confirm_delivery(self._vault, erasure_id)

    def cancel(self, erasure_id: str) -> erasure.Status:
        """Cancel an erasure that has not begun, or a retraining that has not begun.

        Args:
            erasure_id: Id of the erasure.

        Raises:
            NothingMatched: The id is unknown.
            Refused: It has begun.
        """
        return erasure.cancel(self._vault, erasure_id)

    def status(self) -> list[erasure.Status]:
        """Return the status of every erasure of the vault, oldest first."""
        return erasure.status(self._vault)

    def resume(self) -> list[erasure.Outcome]:
        """Finish all unfinished erasures and their retraining.

        Returns:
            The erasures that this call finished.

        Raises:
            PartialErasure: An erasure still cannot finish.
        """
        return erasure.resume(self._vault, retrain=self._retrain)
