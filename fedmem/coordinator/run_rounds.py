"""Run the rounds of a federation on any Grid: in process, Flower's simulation engine, or SuperLink.

Invariants
- Replies are added as they arrive. An aborted round is entered in the journal, and the loop continues. After `ABORTS`
  aborted rounds in a row it ends with the typed error.
- There is one clock: the given one, else the virtual clock of the grid, else that of the machine.

    traffic = run_rounds(grid, coordinator, Journal(folder), until=3)
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from fedmem.coordinator.exchange import exchange_messages
from fedmem.coordinator.journal import Journal, Traffic
from fedmem.errors import RemoteError
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
        RemoteError: too few devices connect in time.
        RoundAborted: `ABORTS` rounds in a row ended without a result.
        StorageError: the disk refuses.
    """
    clock, aborts = clock or getattr(grid, "clock", None) or WallClock(), 0
    while coordinator.finished_rounds < until:
        try:
            _run_one_round(grid, coordinator, journal, patience or Patience(), closing or (lambda: None), clock)
            aborts = 0
        except RoundAborted as error:
            aborts += 1
            _log.warning("%s", error)
            if aborts == ABORTS:
                raise
        if progress:
            progress(coordinator.finished_rounds, until)
    return journal.traffic()


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
    patience: Patience,
    closing: Callable[[], None],
    clock: Clock,
) -> None:
    nodes = _wait_for_nodes(grid, max(patience.nodes, coordinator.settings.minimum), patience, clock)
    opened, transcript = coordinator.open(nodes, clock.now()), Transcript()
    journal.record_open(opened.number)
    exchange_messages(grid, coordinator, opened, transcript, clock, patience.poll)
    closing()
    proof = journal.record_spend(coordinator.spend())
    group, counted, is_short = str(opened.number), coordinator.reply_count, coordinator.has_too_few_replies
    traffic = Traffic(opened.number, *transcript.traffic(group), transcript.digest(group), counted, is_short)
    if is_short:
        coordinator.abort(proof)
        journal.record_abort(traffic)
        raise RoundAborted(f"Round {opened.number} was aborted: {counted} replies counted. Look after the devices.")
    params = coordinator.close(proof)
    journal.record_close(params, traffic, coordinator.state)


def _wait_for_nodes(grid: Grid, minimum: int, patience: Patience, clock: Clock) -> list[int]:
    """Wait until `minimum` devices are connected and return their node ids: Flower may start `main` before that."""
    deadline = clock.now() + patience.connect
    while len(nodes := sorted(grid.get_node_ids())) < max(1, minimum):
        if clock.now() >= deadline:
            raise RemoteError(f"Of {minimum} devices {len(nodes)} are connected. Start the others and run again.")
        clock.sleep(max(patience.poll, 1e-3))
    return nodes


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
