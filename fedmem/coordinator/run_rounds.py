"""Run the rounds of a federation on any Grid: in process, Flower's simulation engine, or SuperLink.

Invariants
- Replies are added as they arrive. An aborted round is entered in the journal, and the loop continues. After `ABORTS`
  aborted rounds in a row, or if the last one was aborted, it ends with the typed error: an aborted round is no success.
- A federation whose devices all hold another protocol, release or plan ends with VersionMismatch (`mismatch`).
- A failing Grid is asked again with growing pauses; what it raises is typed here (`retry`).
- There is one clock: the given one, else the virtual clock of the grid, else that of the machine.

    traffic = run_rounds(grid, coordinator, Journal(folder), until=3)
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from fedmem.coordinator.exchange import exchange_messages
from fedmem.coordinator.journal import Journal, Traffic
from fedmem.coordinator.mismatch import ADVICE, MismatchCheck
from fedmem.coordinator.retry import retry_until
from fedmem.coordinator.roster import Roster
from fedmem.errors import FedmemError, RemoteError, VersionMismatch
from fedmem.federation import wire
from fedmem.federation.clock import Clock, WallClock
from fedmem.federation.flower import Context, Grid, ServerApp
from fedmem.federation.rounds import Coordinator, RoundAborted
from fedmem.federation.transcript import Transcript

_log = logging.getLogger("fedmem.coordinator")

Progress = Callable[[int, int], None]

ABORTS = 3
"""Number of aborted rounds in a row after which a federation ends."""


@dataclass(frozen=True)
class Peers:
    """The facts about its nodes that a coordinator keeps from round to round.

    Attributes:
        roster: chooses the nodes that may be asked.
        mismatch: notices that no device can take part.
    """

    roster: Roster
    mismatch: MismatchCheck


@dataclass(frozen=True)
class Patience:
    """Waiting times of a coordinator.

    Attributes:
        nodes: number of devices that must be connected before a round is opened.
        connect: the longest time to wait for them, in seconds.
        poll: time between two looks at the grid, in seconds.
    """

    nodes: int = 1
    connect: float = 60.0
    poll: float = 0.2


def run_rounds(
    grid: Grid,
    coordinator: Coordinator,
    journal: Journal,
    *,
    until: int,
    progress: Progress | None = None,
    patience: Patience | None = None,
    closing: Callable[[], None] | None = None,
    clock: Clock | None = None,
) -> list[Traffic]:
    """Run rounds until `until` rounds are over, earlier ones included.

    A call that is killed at any point can be repeated on `resumed(...)`; it gives the same bytes.

    Args:
        grid: Flower's grid.
        coordinator: the state machine of the federation.
        journal: the round journal on disk.
        until: total number of rounds.
        progress: called as `progress(done, until)` after each round.
        patience: waiting times.
        closing: called before a round is closed. If it raises, the round stays open.
        clock: gives the time; default is the clock of the grid, else that of the machine.

    Returns:
        The traffic of all rounds, those before this call included.

    Raises:
        BudgetExceeded: the plan does not allow the next round; the round is not opened.
        RemoteError: too few devices connect in time, or Flower fails until the deadline of a round.
        RoundAborted: `ABORTS` rounds in a row ended without a result, or the last round did.
        VersionMismatch: no connected device holds this protocol, release and plan; or all answer with zeros alone.
        StorageError: the disk refuses.
    """
    settings, noisy = coordinator.settings, coordinator.plan.noise_multiplier > 0
    peers = Peers(Roster(coordinator.plan.population), MismatchCheck(settings.moves_devices, noisy))
    clock, aborts = clock or getattr(grid, "clock", None) or WallClock(), 0
    while coordinator.finished_rounds < until:
        try:
            _run_one_round(grid, coordinator, journal, peers, patience or Patience(), closing or (lambda: None), clock)
            aborts = 0
        except RoundAborted as error:
            aborts += 1
            _log.warning("%s", error)
            if aborts == ABORTS:
                raise
        if progress:
            progress(coordinator.finished_rounds, until)
    return _check_last(journal.traffic())


def _check_last(traffic: list[Traffic]) -> list[Traffic]:
    if traffic and traffic[-1].aborted:
        raise RoundAborted(f"Round {traffic[-1].round}, the last one, was aborted: its result is missing. Run more.")
    return traffic


def resume_coordinator(journal: Journal, make: Callable[[wire.Params | None, int], Coordinator]) -> Coordinator:
    """Return a coordinator in the state that the journal holds.

    Args:
        journal: the round journal.
        make: called as `make(params, done)` with the number of rounds that are over. `params` is None if no round was
            closed.

    Raises:
        VerificationFailed: a checkpoint was changed.
    """
    resume_point = journal.resume()
    if resume_point is None:
        return make(None, 0)
    coordinator = make(resume_point.params, resume_point.finished_rounds)
    if resume_point.params is not None:
        coordinator.restore(resume_point.state)
    return coordinator


def _run_one_round(
    grid: Grid,
    coordinator: Coordinator,
    journal: Journal,
    peers: Peers,
    patience: Patience,
    closing: Callable[[], None],
    clock: Clock,
) -> None:
    minimum = max(patience.nodes, coordinator.settings.minimum)
    nodes = peers.roster.choose(_wait_for_nodes(grid, minimum, patience, coordinator.settings.deadline, clock))
    opened, transcript = coordinator.open(nodes, clock.now()), Transcript()
    journal.record_open(opened.number)
    outcomes = exchange_messages(grid, coordinator, opened, transcript, clock, patience.poll)
    closing()
    proof = journal.record_spend(coordinator.spend())
    mismatch = peers.mismatch.judge(outcomes, nodes)
    group, counted = str(opened.number), coordinator.reply_count
    has_no_result = coordinator.has_too_few_replies or mismatch is not None
    traffic = Traffic(opened.number, *transcript.traffic(group), transcript.digest(group), counted, has_no_result)
    if has_no_result:
        coordinator.abort(proof)
        journal.record_abort(traffic)
        raise _no_result(opened.number, counted, mismatch)
    params = coordinator.close(proof)
    journal.record_close(params, traffic, coordinator.state)


def _no_result(number: int, counted: int, mismatch: str | None) -> FedmemError:
    if mismatch is not None:
        return VersionMismatch(f"Round {number} was aborted, for no device can take part: {mismatch}. {ADVICE}")
    return RoundAborted(f"Round {number} was aborted: {counted} replies counted. Look after the devices.")


def _wait_for_nodes(grid: Grid, minimum: int, patience: Patience, deadline: float, clock: Clock) -> list[int]:
    """Wait until `minimum` devices are connected and return their node ids: Flower may start `main` before that."""
    start = clock.now()
    while True:
        nodes = retry_until(
            lambda: sorted(grid.get_node_ids()), clock, start + max(patience.connect, deadline), "naming its nodes"
        )
        if len(nodes) >= max(1, minimum):
            return nodes
        if clock.now() >= start + patience.connect:
            raise RemoteError(f"Of {minimum} devices {len(nodes)} are connected. Start the others and run again.")
        clock.sleep(max(patience.poll, 1e-3))


def make_server_app(start: Callable[[Context], tuple[Coordinator, Journal, int, Patience]]) -> ServerApp:
    """Return a ServerApp whose `main` runs the rounds.

    Args:
        start: makes coordinator, journal, total number of rounds and waiting times from Flower's context.
    """
    app = ServerApp()

    def main(grid: Grid, context: Context) -> None:
        coordinator, journal, until, patience = start(context)
        run_rounds(grid, coordinator, journal, until=until, patience=patience, progress=_log_progress)

    app.main()(main)
    return app


def _log_progress(done: int, until: int) -> None:
    _log.warning("Round %d of %d is closed.", done, until)
