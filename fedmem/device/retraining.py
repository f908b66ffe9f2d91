"""Train a topic's block again without erased records: ordinary learning, with the plan of the earlier run.

Invariants
- The budget is checked for the remaining records before anything is destroyed. The new run is charged as any other.
- The new block begins with public rows and a noise stream of its own, on the release of the old block.
- No state is kept here. The vault records the planned run, so that another process can continue it.

    Erase(vault, Retrainer(release, policy)).plan(record=[note.id], blocks="retrain").execute()
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
    """Retrains blocks on one release, under the budgets of one policy.

    Args:
        release: the release to train on.
        policy: the policy, which has the budgets of the topics.
    """

    def __init__(self, release: "Release", policy: Policy) -> None:
        self._release, self._policy = release, policy

    def check(self, vault: Vault, retraining: Retraining) -> None:
        """Check that the block may be trained again; nothing is charged.

        Args:
            vault: the open vault of the block.
            retraining: the block's topic, release and plan, and the ids of the remaining records.

        Raises:
            VersionMismatch: the block belongs to another release.
            BudgetExceeded: the new run would exceed the topic's budget.
            Refused: the policy lacks the topic, there are more records than the plan's cap, the delta is above the
                topic's, or the block was not made by learning.
        """
        from fedmem.privacy.ledger import check_budget

        topic, plan, _ = self._settings(retraining.topic, retraining.release, retraining.plan)
        if len(retraining.records) > plan.record_cap or plan.delta > topic.delta:
            raise Refused("The block's plan no longer fits its topic. Delete the block, and learn with a new plan.")
        events, ids = vault.ledger.events(), retraining.records
        check_budget(events, plan.spend, ids, budget=topic.epsilon, delta=plan.delta)

    def train(self, vault: Vault, run: RunRecord) -> str:
        """Train the block of a planned run, and return the new block's id. The run is charged before its first step.

        Args:
            vault: the open vault of the run.
            run: the planned run.

        Raises:
            VersionMismatch, BudgetExceeded, Refused: as `check`.
            NothingMatched: the topic has no record, or the run is not open any more.
        """
        from fedmem.device.learning import learn_topic

        topic, plan, settings = self._settings(run.topic, run.release, run.plan)
        return learn_topic(vault, self._release, topic, plan, settings=settings).id

    def _settings(
        self, topic: str, release: str, public: Mapping[str, Any]
    ) -> "tuple[Topic, PrivacyPlan, LearnSettings]":
        if release != self._release.digest:
            raise VersionMismatch(f"The block belongs to release {release[:12]}. Give that one, or delete the block.")
        if topic not in self._policy.topics:
            raise Refused("The policy has no budget for the block's topic. Name its policy, or delete the block.")
        return self._policy.topics[topic], *choices(public)


def choices(public: Mapping[str, Any]) -> "tuple[PrivacyPlan, LearnSettings]":
    """Return plan and settings of a run.

    Args:
        public: the sealed facts of the run.

    Raises:
        Refused: the run was not made by learning.
    """
    from fedmem.device.learning import LearnSettings
    from fedmem.privacy.dpsgd import Optimiser
    from fedmem.privacy.plan import PrivacyPlan

    try:
        learning = dict(public["learning"])
        settings = LearnSettings(**learning | {"optimiser": Optimiser(**learning["optimiser"])})
        return PrivacyPlan.from_dict(public["privacy"]), settings
    except (KeyError, TypeError):
        raise Refused("The block was not made by learning, so it cannot be trained again. Delete it.") from None
