"""Train a topic's block in sessions that can be paused and cancelled, with limits of time and memory.

Invariants
- A run is charged once, before its first step. A session goes on from the sealed checkpoint of the one before. The
  result has the same bytes as an uninterrupted run on one machine, with the same memory limit and number of threads.
- If records or plan have changed between two sessions, the run ends failed and stays charged. No new run is charged
  unless the caller asks for it.
- The vault's writer lock is held to begin, to save and to finish, and never while steps are computed. Other programs
  can read, answer and write meanwhile. During the steps this process holds a lease: an erasure stops it.
- A session takes at least one step, so a run makes progress under any deadline.
- Only step numbers are reported, never losses, norms or values of single records.

    with Vault.open(root, subject="ana") as vault:
        result = train(vault, release, policy.topics["health"], plan, Limits(memory=1 << 30))
        print(result.state, result.step, result.steps)
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from fedmem.device import session_lock
from fedmem.device.retraining import choices
from fedmem.device.session_lock import SessionLock, SessionStatus, request_stop
from fedmem.errors import Busy, NothingMatched, Refused, UsageError
from fedmem.policy.policy import Policy
from fedmem.vault.vault import ALL, RunRecord, Vault

if TYPE_CHECKING:
    from fedmem.device.learning import ChargedRun, LearnSettings
    from fedmem.policy.files import Topic
    from fedmem.privacy.dpsgd import Progress, State
    from fedmem.privacy.gradients import RuntimeOptions
    from fedmem.privacy.plan import PrivacyPlan
    from fedmem.training.release import Release

CHECKPOINT_INTERVAL = 60.0  # seconds; a session that is killed loses at most these
PATIENCE = 120.0  # seconds to wait until a training has ended its step
ERASED = (
    "Something was erased from the vault meanwhile, so the training stopped. Train again: if its own records were not "
    "erased, it goes on from its checkpoint."
)
STATES = {"open": "paused", "finishing": "paused", "finished": "done", "failed": "failed", "wanted": "waiting"}
Stop = Callable[[], bool]


@dataclass(frozen=True)
class Limits:
    """The limits of one session; None means no limit.

    Attributes:
        deadline: a time with its time zone.
        memory: bytes of memory of the whole process.

    Raises:
        Refused: the deadline has passed.
        UsageError: the deadline has no time zone.
    """

    deadline: datetime | None = None
    memory: int | None = None

    def __post_init__(self) -> None:
        if self.deadline is not None and self.deadline.tzinfo is None:
            raise UsageError("A deadline needs its time zone; take datetime(…, tzinfo=UTC).")
        if self.seconds() <= 0:
            raise Refused("The deadline has passed already; nothing was trained or charged. Give a later one.")

    def seconds(self) -> float:
        """Return the seconds until the deadline; inf without one, negative if it has passed."""
        return float("inf") if self.deadline is None else (self.deadline - datetime.now(UTC)).total_seconds()


@dataclass(frozen=True)
class SessionResult:
    """The result of a session.

    Attributes:
        run: random id of the run.
        state: "done", or "paused".
        step: number of steps done.
        steps: number of steps of the plan.
        block: id of the block; None if paused.
    """

    run: str
    state: Literal["done", "paused"]
    step: int
    steps: int
    block: str | None = None


@dataclass(frozen=True)
class TrainingStatus:
    """The status of a training run.

    | field | meaning |
    |---|---|
    | state | waiting, running, paused, done or failed |
    | step | steps that are done and saved, or done in a running session |
    | steps | steps of the plan |
    | block | id of the block; None until the run is done |
    | message | message of the last session's error, if it ended by one |
    """

    run: str
    topic: str = field(repr=False)
    release: str
    state: str
    step: int
    steps: int
    block: str | None
    message: str = ""


class _Pause(Exception):
    """The signal that ends the training after a step."""


def train(
    vault: Vault,
    release: "Release",
    topic: "Topic",
    plan: "PrivacyPlan | None" = None,
    limits: Limits | None = None,
    *,
    settings: "LearnSettings | None" = None,
    stop: Stop | None = None,
    progress: "Progress | None" = None,
) -> SessionResult:
    """Train the block of `topic`, or go on with its open run, in one session.

    The session ends when the run is done, at a limit, after a request (`pause`, `cancel`), or when `stop()` is true.

    Args:
        plan: the plan; if None, that of the open run, or else the default plan at the topic's whole ε.
        settings: public settings; if None, those of the open run, or else the defaults.
        stop: is called after each step; True pauses the run.
        progress: is called after each step, with the step and the number of steps.

    Returns:
        The state of the run at the end of the session.

    Raises:
        Refused: the topic has no record, records or plan have changed since the pause, the training was cancelled, the
            deadline has passed, or the memory limit is too small for the release or a record.
        BudgetExceeded: the run would exceed the topic's budget; nothing is charged then.
        Busy: another training runs, another program writes, or something was erased meanwhile.
        StorageError: the vault cannot be written.
    """
    from fedmem.device.learning import LearnSettings, charge

    if vault.simulated:
        raise Refused(
            "This vault was made by a simulation, and its noise follows from a seed, so it must not be trained on."
        )
    with SessionLock(vault.root) as lock, vault.core.in_use():
        limits = limits or Limits()
        deadline = time.monotonic() + limits.seconds()
        generation, finishing = vault.generation, _finishing_runs(vault, topic.name, release.digest)
        with vault.core.turn():  # finishes or undoes what a killed session left
            for run in vault.runs_by_id(finishing):
                if run.state == "finished":
                    steps = int(run.plan.get("privacy", {}).get("steps", 0))
                    return SessionResult(run.id, "done", steps, steps, run.block_id)
        if plan is None:
            plan, settings = _plan_of_open_run(vault, topic, release.digest, settings)
        settings = settings or LearnSettings()
        runtime, record_memory = _fit_memory(release, settings, limits.memory)
        try:
            charged = charge(
                vault, release, topic, plan, settings=settings, may_recharge=False, record_memory=record_memory
            )
        except NothingMatched as error:
            raise Refused(f"{error} Nothing was charged.") from None
        session = _Session(vault, lock, charged, generation, deadline, stop or (lambda: False))
        return session.run(runtime, progress)


class _Session:
    """One session of a charged run; `deadline` in seconds of `time.monotonic`."""

    def __init__(
        self,
        vault: Vault,
        lock: SessionLock,
        charged: "ChargedRun",
        generation: int,
        deadline: float,
        stop: Stop,
    ) -> None:
        self._vault, self._lock, self._charged, self._stop = vault, lock, charged, stop
        self._generation, self._deadline, self._last_save = generation, deadline, time.monotonic()
        self._step, self._steps = charged.state.step if charged.state else 0, charged.plan.steps
        lock.write_status(charged.run.id, self._step, self._steps)

    def run(self, runtime: "RuntimeOptions | None", progress: "Progress | None") -> SessionResult:
        """Train until the run is done or paused. Seal the block or the checkpoint."""
        from fedmem.device.learning import seal_block, train

        try:
            block_X = train(self._charged, runtime, progress, self._after_step)
        except _Pause:
            return SessionResult(self._charged.run.id, "paused", self._step, self._steps)
        block = seal_block(self._vault, self._charged, block_X)
        return SessionResult(self._charged.run.id, "done", self._steps, self._steps, block.id)

    def _after_step(self, state: "State") -> None:
        """Stop the session if it has to end, and save a checkpoint if one is due."""
        self._step = state.step
        self._lock.write_status(self._charged.run.id, state.step, self._steps)
        if self._vault.generation != self._generation:
            raise Busy(ERASED)
        request, now = self._lock.request(), time.monotonic()
        if request == "cancel":
            self._cancel()
        if state.step == self._steps:
            return
        if request or self._stop() or now >= self._deadline:
            self._save(state)
            raise _Pause
        if now >= self._last_save + CHECKPOINT_INTERVAL:
            with suppress(Busy):  # the next step tries again
                self._save(state)

    def _save(self, state: "State") -> None:
        from fedmem.device.learning import save_checkpoint

        save_checkpoint(self._vault, self._charged, state)
        self._last_save = time.monotonic()

    def _cancel(self) -> None:
        self._vault.fail_run(self._charged.run)
        raise Refused("The training was cancelled. Its run ended as failed and stays charged.")


def _plan_of_open_run(
    vault: Vault, topic: "Topic", release: str, settings: "LearnSettings | None"
) -> "tuple[PrivacyPlan, LearnSettings | None]":
    """Return plan and settings of the topic's open run on this release; without one, the default plan.

    `settings`, if given, take the place of the run's settings.
    """
    from fedmem.device.learning import default_plan

    open_runs = [run for run in vault.runs(topic.name) if (run.state, run.release) == ("open", release)]
    if not open_runs:
        return default_plan(topic.epsilon), settings
    plan, run_settings = choices(open_runs[-1].plan)
    return plan, settings or run_settings


def _finishing_runs(vault: Vault, topic: str, release: str) -> list[str]:
    """Return the ids of runs that ended while their block was sealed; the next writer finishes or undoes that."""
    return [run.id for run in vault.runs(topic) if (run.state, run.release) == ("finishing", release)]


def _fit_memory(
    release: "Release", settings: "LearnSettings", memory: int | None
) -> "tuple[RuntimeOptions | None, int | None]":
    """Return options with the micro-batch that fits into `memory`, and the bytes that are left for the records."""
    if memory is None:
        return None, None
    from fedmem.device.learning import private_spec
    from fedmem.privacy.footprint import fit_footprint
    from fedmem.privacy.gradients import RuntimeOptions

    spec, vocabulary = private_spec(release, settings), release.tokenizer.get_vocab_size()
    footprint = fit_footprint(memory, spec, vocabulary, settings.length)
    return RuntimeOptions(footprint.micro_batch), footprint.room


def migrate(
    vault: Vault,
    id_or_topic: str,
    release: "Release",
    policy: Policy,
    limits: Limits | None = None,
    *,
    stop: Stop | None = None,
    progress: "Progress | None" = None,
) -> SessionResult:
    """Train a block's topic on another release, with the block's plan. The old block stays in use on its own release.

    Args:
        id_or_topic: the block's id, or its topic.
        limits, stop, progress: as in `train`.

    Returns:
        The state of the run at the end of the session.

    Raises:
        NothingMatched: there is no such block.
        Refused: the topic has a block on that release already, the policy has no budget for the topic, or the block was
            not made by learning.
        FedmemError: any error of `train`.
    """
    block = vault.block(id_or_topic)
    if release.digest in {other.release for other in vault.blocks_of(block.topic)}:
        raise Refused("The topic has a block on this release already; `fedmem client train` trains it anew.")
    if block.topic not in policy.topics:
        raise Refused("The policy has no budget for the block's topic, so it stays on its release. Name its policy.")
    run = next(iter(vault.runs_by_id([block.run_id])), None)
    plan, settings = choices(run.plan if run else {})
    return train(
        vault, release, policy.topics[block.topic], plan, limits, settings=settings, stop=stop, progress=progress
    )


def training_statuses(vault: Vault) -> list[TrainingStatus]:
    """Return the status of every run of the vault that was not erased, oldest first.

    Args:
        vault: the open vault.
    """
    is_running, session = session_lock.is_training_running(vault.root), session_lock.read_status(vault.root)
    return [_status_of(vault, run, is_running, session) for run in vault.runs_by_id(vault.ids_of(ALL))]


def _status_of(vault: Vault, run: RunRecord, is_running: bool, session: SessionStatus | None) -> TrainingStatus:
    own_session = session if session is not None and session.run == run.id else SessionStatus()
    state, steps = STATES[run.state], int(run.plan.get("privacy", {}).get("steps", 0))
    step = steps if state == "done" else vault.checkpoint_step(run) if state == "paused" else 0
    if state == "paused" and is_running and own_session.run:
        state, step = "running", own_session.step
    block = run.block_id if state == "done" else None
    message = own_session.message if state in ("paused", "failed") else ""
    return TrainingStatus(run.id, run.topic, run.release, state, step, steps, block, message)


def pause(vault: Vault, patience: float = PATIENCE) -> TrainingStatus:
    """Ask the running training to save a checkpoint and stop after its step, wait for it, and return its status.

    Args:
        vault: the open vault.
        patience: seconds to wait for the training to stop, at least 0.

    Raises:
        NothingMatched: no training of this vault runs.
        Busy: it has not stopped within `patience` seconds. It stops later.
    """
    session = session_lock.read_status(vault.root)
    if not session_lock.is_training_running(vault.root) or session is None:
        raise NothingMatched("No training of this vault runs. `fedmem client status` shows the state of each.")
    if not request_stop(vault.root, "pause", patience):
        raise Busy("The training was asked to pause and has not finished its step. See `fedmem client status`.")
    paused = session_lock.read_status(vault.root) or session
    return next(status for status in training_statuses(vault) if status.run == paused.run)


def cancel(vault: Vault, name: str, patience: float = PATIENCE) -> TrainingStatus:
    """End a run for good, and return its status: it is failed and stays charged.

    Args:
        name: the run's id, or the topic of the only run that has not ended.

    Raises:
        NothingMatched, UsageError: as `cancellable`.
        Busy: as `pause`.
    """
    status = cancellable(vault, name)
    if status.state == "running" and not request_stop(vault.root, "cancel", patience):
        raise Busy("The training was asked to end and has not finished its step. See `fedmem client status`.")
    vault.end_run(status.run)
    return next(ended for ended in training_statuses(vault) if ended.run == status.run)


def cancellable(vault: Vault, name: str) -> TrainingStatus:
    """Return the status of the run that `cancel` would end.

    Args:
        vault: the open vault.
        name: the run's id, or the topic of the only run that has not ended.

    Raises:
        NothingMatched: no run of this id or topic is running or paused.
        UsageError: the topic has several such runs.
    """
    statuses = [status for status in training_statuses(vault) if name in (status.run, status.topic)]
    statuses = [status for status in statuses if status.state in ("running", "paused")]
    if not statuses:
        raise NothingMatched("No training of this name is running or paused. See `fedmem client status`.")
    if len(statuses) > 1:
        raise UsageError("The topic has several trainings that have not ended. Name one by its id.")
    return statuses[0]
