"""Train a topic's block anew without erased records: the ordinary learning, with the plan of the run it repeats.

Invariants
- The budget is checked on the records that remain, before anything is destroyed; the charge is the ordinary one.
- The new block begins with public rows and a noise stream of its own, on the release of the old block.
- Nothing is kept here: the wish lies in the vault, so that another process can go on.

    Erase(vault, Relearn(release, policy)).plan(record=[note.id], blocks="retrain").execute()
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedmem.erasure import Retraining
from fedmem.errors import Refused, VersionMismatch
from fedmem.policy.policy import Policy, Topic
from fedmem.vault.vault import RunRecord, Vault

if TYPE_CHECKING:
    from fedmem.device.learning import LearnSettings
    from fedmem.privacy.plan import PrivacyPlan
    from fedmem.training.release import Release


class Retrainer:
    """Retrains on one release, under the budgets of one policy."""

    def __init__(self, release: "Release", policy: Policy) -> None:
        self._release, self._policy = release, policy

    def check(self, vault: Vault, wanted: Retraining) -> None:
        """Return if the block may be trained anew; nothing is charged.

        Raises VersionMismatch (another release), BudgetExceeded, Refused (a topic that the policy lacks, more records
        than the plan's cap, a delta above the topic's, a run that was not the ordinary learning's).
        """
        from fedmem.privacy.ledger import check_budget

        topic, plan, _ = self._known(wanted.topic, wanted.release, wanted.plan)
        if len(wanted.records) > plan.record_cap or plan.delta > topic.delta:
            raise Refused("The block's plan no longer fits its topic. Delete the block, and learn with a new plan.")
        events, ids = vault.ledger.events(), wanted.records
        check_budget(events, plan.spend, ids, budget=topic.epsilon, delta=plan.delta)

    def train(self, vault: Vault, wanted: RunRecord) -> str:
        """Train the block, charged before its first step; the new block's id. Raises as `check`, and NothingMatched."""
        from fedmem.device.learning import learn_topic

        topic, plan, settings = self._known(wanted.topic, wanted.release, wanted.plan)
        return learn_topic(vault, self._release, topic, plan, settings=settings).id

    def _known(self, topic: str, release: str, public: Mapping[str, Any]) -> "tuple[Topic, PrivacyPlan, LearnSettings]":
        if release != self._release.digest:
            raise VersionMismatch(f"The block belongs to release {release[:12]}. Give that one, or delete the block.")
        if topic not in self._policy.topics:
            raise Refused("The policy has no budget for the block's topic. Name its policy, or delete the block.")
        return self._policy.topics[topic], *choices(public)


def choices(public: Mapping[str, Any]) -> "tuple[PrivacyPlan, LearnSettings]":
    """Plan and settings of a run, from its sealed facts."""
    from fedmem.device.learning import LearnSettings
    from fedmem.privacy.dpsgd import Optimiser
    from fedmem.privacy.plan import PrivacyPlan

    try:
        learning = dict(public["learning"])
        settings = LearnSettings(**learning | {"optimiser": Optimiser(**learning["optimiser"])})
        return PrivacyPlan.from_dict(public["privacy"]), settings
    except (KeyError, TypeError):
        raise Refused("The block was not made by learning, so it cannot be trained anew. Delete it.") from None
