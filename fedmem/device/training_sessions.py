"""Train a topic's block on a device: under limits of time and memory, in sessions that can be paused and cancelled.

Invariants
- Charged before the first step, once; a session goes on from the sealed checkpoint of the one before, to the bytes of
  a run that was never cut (on one machine, with the same memory limit and number of threads).
- Records or plan that changed in between: the run ends failed, stays charged, and nothing else is charged unasked.
- The vault's writer lock is held to begin, to save and to finish, never while steps are computed: meanwhile other
  programs read, answer and write. In between this process is a reader with a lease: an erasure stops it.
- A session takes at least one step, so that any deadline makes progress.
- Losses, norms and anything per record are not told: step numbers only.

    with Shared(lambda write: Vault.open(root, subject="ana", write=write)) as door:
        trained = train(door, release, policy.topics["health"], plan, Limits(memory=1 << 30))
        print(trained.state, trained.step, trained.steps)
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, Protocol, Self

from fedmem.device.retraining import choices
from fedmem.device.session_lock import SessionLock, SessionStatus, ask, runs, said
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

EVERY = 60.0  # seconds between two checkpoints: what a session that is killed loses at most
AT_START, AT_SAVE, AT_END = 5.0, 10.0, 120.0  # seconds that a session waits for the vault's writer lock
STATES = {"open": "paused", "finishing": "paused", "finished": "done", "failed": "failed", "wanted": "waiting"}
ERASED = (
    "Something was erased from the vault meanwhile, so the training let go of what it had read. Train again: it goes "
    "on from its checkpoint where its own records are still there."
)
Stop = Callable[[], bool]


@dataclass(frozen=True)
class Limits:
    """Of one session: `deadline`, a time with its zone; `memory` of the whole process, in bytes; None is no limit.

    Raises Refused for a deadline that has passed when the limits are made, UsageError for a time without its zone.
    """

    deadline: datetime | None = None
    memory: int | None = None

    def __post_init__(self) -> None:
        if self.deadline is not None and self.deadline.tzinfo is None:
            raise UsageError("A deadline needs its time zone; take datetime(…, tzinfo=UTC).")
        if self.seconds() <= 0:
            raise Refused("The deadline has passed already; nothing was trained or charged. Give a later one.")

    def seconds(self) -> float:
        """Seconds until the deadline; negative where it has passed since, which leaves one step."""
        return float("inf") if self.deadline is None else (self.deadline - datetime.now(UTC)).total_seconds()


@dataclass(frozen=True)
class SessionResult:
    """How a session ended: "done" with the id of the `block`, or "paused" after `step` of `steps`."""

    run: str
    state: Literal["done", "paused"]
    step: int
    steps: int
    block: str | None = None


@dataclass(frozen=True)
class TrainingStatus:
    """How a run stands: waiting, running, paused, done or failed; steps that are known, and the last error's words."""

    run: str
    topic: str = field(repr=False)
    release: str
    state: str
    step: int
    steps: int
    block: str | None
    message: str = ""


class VaultAccess(Protocol):
    """A vault that is open for reading during a session, and the way to write to it for a moment."""

    vault: Vault

    def writing(self, patience: float) -> AbstractContextManager[Vault]:
        """The vault, open for writing. Raises Busy where another program writes for longer than `patience` seconds."""


class ExclusiveAccess:
    """The door of a program that has the vault open for writing."""

    def __init__(self, vault: Vault) -> None:
        self.vault = vault

    @contextmanager
    def writing(self, patience: float) -> Iterator[Vault]:
        """The vault itself."""
        yield self.vault


class SharedAccess:
    """The door of a program that leaves the vault to others but for moments. `opened(write)` opens the vault."""

    def __init__(self, opened: Callable[[bool], Vault]) -> None:
        self._opened, self.vault = opened, opened(False)
        self._generation = self.vault.generation

    @contextmanager
    def writing(self, patience: float) -> Iterator[Vault]:
        """The vault, opened for this."""
        with self._writer(time.monotonic() + patience) as vault:
            yield vault

    def _writer(self, limit: float) -> Vault:
        while True:
            try:
                return self._opened(True)
            except Busy:
                if time.monotonic() > limit:
                    raise
            if self.vault.generation != self._generation:  # an erasure writes, and waits for its readers to let go
                raise Busy(ERASED)
            time.sleep(0.1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.vault.close()


class _Pause(Exception):
    """Ends the training after a step."""


def train(
    door: VaultAccess,
    release: "Release",
    topic: "Topic",
    plan: "PrivacyPlan | None" = None,
    limits: Limits | None = None,
    *,
    settings: "LearnSettings | None" = None,
    stop: Stop | None = None,
    progress: "Progress | None" = None,
) -> SessionResult:
    """Train the block of `topic`, or go on with its open run, until it is done, a limit, a request or `stop()`.

    Without `plan`, that of the open run, or the default plan at the topic's whole ε.

    Raises Refused: no record, records or plan changed since the pause, cancelled, the deadline has passed, the limit
    is too small for the release or a record; BudgetExceeded; Busy: a training runs, another program writes, or
    something was erased meanwhile; StorageError.
    """
    from fedmem.device.learning import LearnSettings, charge

    if door.vault.simulated:
        raise Refused("This vault was made by a simulation, its noise follows from a seed; it must not be trained on.")
    with SessionLock(door.vault.root) as mark:
        limits = limits or Limits()
        end = time.monotonic() + limits.seconds()
        if plan is None:
            plan, settings = _chosen(door.vault, topic, release.digest, settings)
        settings = settings or LearnSettings()
        runtime, room = _fitted(release, settings, limits.memory)
        generation, cut = door.vault.generation, _finishing(door.vault, topic.name, release.digest)
        with door.writing(AT_START) as vault:
            for run in vault.runs_by_id(cut):
                if run.state == "finished":  # a crash cut its last session after all that matters
                    return SessionResult(run.id, "done", plan.steps, plan.steps, run.block_id)
            try:
                charged = charge(vault, release, topic, plan, settings=settings, renew=False, room=room)
            except NothingMatched as error:
                raise Refused(f"{error} Nothing was charged.") from None
        session = _Session(door, mark, charged, generation, end, stop or (lambda: False))
        return session.run(runtime, progress)


class _Session:
    """A charged run and what may end it."""

    def __init__(
        self, door: VaultAccess, mark: SessionLock, charged: "ChargedRun", generation: int, end: float, stop: Stop
    ) -> None:
        self._door, self._mark, self._charged, self._stop = door, mark, charged, stop
        self._generation, self._end, self._saved = generation, end, time.monotonic()
        self._step, self._steps = charged.state.step if charged.state else 0, charged.plan.steps
        mark.say(charged.run.id, self._step, self._steps)

    def run(self, runtime: "RuntimeOptions | None", progress: "Progress | None") -> SessionResult:
        """Train, and seal the block or the checkpoint."""
        from fedmem.device.learning import finish, train

        try:
            block_X = train(self._charged, runtime, progress, self._after)
        except _Pause:
            return SessionResult(self._charged.run.id, "paused", self._step, self._steps)
        with self._door.writing(AT_END) as vault:
            block = finish(vault, self._charged, block_X)
        return SessionResult(self._charged.run.id, "done", self._steps, self._steps, block.id)

    def _after(self, state: "State") -> None:
        """After each step: stop where that is due, and save now and then."""
        self._step = state.step
        self._mark.say(self._charged.run.id, state.step, self._steps)
        if self._door.vault.generation != self._generation:
            raise Busy(ERASED)
        asked, now = self._mark.asked(), time.monotonic()
        if asked == "cancel":
            self._cancel()
        if state.step == self._steps:
            return
        if asked or self._stop() or now >= self._end:
            self._save(state)
            raise _Pause
        if now >= self._saved + EVERY:
            with suppress(Busy):  # the next step tries again
                self._save(state, patience=0.0)

    def _save(self, state: "State", patience: float = AT_SAVE) -> None:
        from fedmem.device.learning import keep

        with self._door.writing(patience) as vault:
            keep(vault, self._charged, state)
        self._saved = time.monotonic()

    def _cancel(self) -> None:
        with self._door.writing(AT_END) as vault:
            vault.fail_run(self._charged.run)
        raise Refused("The training was cancelled. Its run ended as failed and stays charged.")


def _chosen(
    vault: Vault, topic: "Topic", release: str, settings: "LearnSettings | None"
) -> "tuple[PrivacyPlan, LearnSettings | None]":
    """Plan and settings of the topic's open run on this release, else the default plan."""
    from fedmem.device.learning import default_plan

    begun = [run for run in vault.runs(topic.name) if (run.state, run.release) == ("open", release)]
    if not begun:
        return default_plan(topic.epsilon), settings
    plan, known = choices(begun[-1].plan)
    return plan, settings or known


def _finishing(vault: Vault, topic: str, release: str) -> list[str]:
    """Ids of runs whose block was being sealed; the next writer finishes or undoes that."""
    return [run.id for run in vault.runs(topic) if (run.state, run.release) == ("finishing", release)]


def _fitted(
    release: "Release", settings: "LearnSettings", memory: int | None
) -> "tuple[RuntimeOptions | None, int | None]":
    """The micro-batch that fits, and the bytes that are left for the records."""
    if memory is None:
        return None, None
    from fedmem.device.learning import private_spec
    from fedmem.privacy.footprint import fitting
    from fedmem.privacy.gradients import RuntimeOptions

    spec, vocabulary = private_spec(release, settings), release.tokenizer.get_vocab_size()
    footprint = fitting(memory, spec, vocabulary, settings.length)
    return RuntimeOptions(footprint.micro_batch), footprint.room


def migrate(
    door: VaultAccess,
    id_or_topic: str,
    release: "Release",
    policy: Policy,
    limits: Limits | None = None,
    *,
    stop: Stop | None = None,
    progress: "Progress | None" = None,
) -> SessionResult:
    """Train a block's topic anew on another release, with the block's plan; the old block stays and answers on its own.

    Raises NothingMatched for an unknown block; Refused where the topic has a block on that release already, the policy
    no budget for it, or the block was not made by learning; else as `train`.
    """
    block = door.vault.block(id_or_topic)
    if release.digest in {other.release for other in door.vault.blocks_of(block.topic)}:
        raise Refused("The topic has a block on this release already; `fedmem client train` trains it anew.")
    if block.topic not in policy.topics:
        raise Refused("The policy has no budget for the block's topic, so it stays on its release. Name its policy.")
    made = next(iter(door.vault.runs_by_id([block.run_id])), None)
    plan, settings = choices(made.plan if made else {})
    return train(
        door, release, policy.topics[block.topic], plan, limits, settings=settings, stop=stop, progress=progress
    )


def trainings(vault: Vault) -> list[TrainingStatus]:
    """Every run of the vault that was not erased, oldest first."""
    live, told = runs(vault.root), said(vault.root)
    return [_standing(vault, run, live, told) for run in vault.runs_by_id(vault.ids_of(ALL))]


def _standing(vault: Vault, run: RunRecord, live: bool, told: SessionStatus | None) -> TrainingStatus:
    mine = told if told is not None and told.run == run.id else SessionStatus()
    state, steps = STATES[run.state], int(run.plan.get("privacy", {}).get("steps", 0))
    step = steps if state == "done" else vault.checkpoint_step(run) if state == "paused" else 0
    if state == "paused" and live and mine.run:
        state, step = "running", mine.step
    block = run.block_id if state == "done" else None
    message = mine.message if state in ("paused", "failed") else ""
    return TrainingStatus(run.id, run.topic, run.release, state, step, steps, block, message)


def pause(vault: Vault, patience: float = AT_END) -> TrainingStatus:
    """Ask the training that runs to save itself and stop after its step, and wait until it has.

    Raises NothingMatched where none runs; Busy where it has not stopped after `patience` seconds: it will.
    """
    told = said(vault.root)
    if not runs(vault.root) or told is None:
        raise NothingMatched("No training of this vault runs. `fedmem client status` shows how each stands.")
    if not ask(vault.root, "pause", patience):
        raise Busy("The training was asked to pause and has not finished its step. See `fedmem client status`.")
    return next(one for one in trainings(vault) if one.run == (said(vault.root) or told).run)


def cancel(door: VaultAccess, name: str, patience: float = AT_END) -> TrainingStatus:
    """End the run `name` (its id, or the topic of the only one that has not ended): it fails and stays charged.

    Raises NothingMatched, UsageError where a topic has several, Busy as `pause`.
    """
    found = cancellable(door.vault, name)
    if found.state == "running" and not ask(door.vault.root, "cancel", patience):
        raise Busy("The training was asked to end and has not finished its step. See `fedmem client status`.")
    with door.writing(AT_START) as vault:
        vault.end_run(found.run)
    return next(one for one in trainings(door.vault) if one.run == found.run)


def cancellable(vault: Vault, name: str) -> TrainingStatus:
    """The run that `cancel` would end. Raises NothingMatched, UsageError."""
    found = [one for one in trainings(vault) if name in (one.run, one.topic) and one.state in ("running", "paused")]
    if not found:
        raise NothingMatched("No training of this name is running or paused. See `fedmem client status`.")
    if len(found) > 1:
        raise UsageError("The topic has several trainings that have not ended. Name one by its id.")
    return found[0]
