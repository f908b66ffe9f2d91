"""The loop over rounds, for every Grid: in process, Flower's simulation engine, SuperLink.

Invariants
- Replies are added as they arrive. An aborted round is journalled and the loop goes on; after `ABORTS` of them in a row
  it ends with the typed error.
- Time comes from one clock: the one given, else the grid's own virtual one, else the machine's.

    traffic = run_rounds(grid, coordinator, Journal(folder), until=3)
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from fedmem.coordinator import round as exchange
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
"""Rounds in a row that may end without a result before a federation does."""


@dataclass(frozen=True)
class Patience:
    """How long a coordinator waits for `nodes` devices to connect, and between two looks, in seconds."""

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
    """Run rounds until `until` are over in all; returns the traffic of every round, earlier ones included.

    `progress(done, until)` is told after each round; `closing` is called before one is closed, and what it raises
    leaves the round open. Raises BudgetExceeded before a round the plan does not allow, RemoteError if too few devices
    connect, RoundAborted after `ABORTS` rounds in a row without a result, and StorageError where the disk refuses.
    Killed anywhere and called again on `resumed(...)`, it gives the same bytes.
    """
    ticks, aborts = clock or getattr(grid, "clock", None) or WallClock(), 0
    while coordinator.done < until:
        try:
            _one_round(grid, coordinator, journal, patience or Patience(), closing or (lambda: None), ticks)
            aborts = 0
        except RoundAborted as error:
            aborts += 1
            _log.warning("%s", error)
            if aborts == ABORTS:
                raise
        if progress:
            progress(coordinator.done, until)
    return journal.traffic()


def resumed(journal: Journal, make: Callable[[wire.Params | None, int], Coordinator]) -> Coordinator:
    """The coordinator as the journal left it: `make(params, rounds over)`; params are None before a round is closed."""
    left = journal.resume()
    if left is None:
        return make(None, 0)
    coordinator = make(left.params, left.done)
    if left.params is not None:
        coordinator.restore(left.state)
    return coordinator


def _one_round(
    grid: Grid,
    coordinator: Coordinator,
    journal: Journal,
    patience: Patience,
    closing: Callable[[], None],
    clock: Clock,
) -> None:
    nodes = _connected(grid, max(patience.nodes, coordinator.settings.minimum), patience, clock)
    opened, wire_log = coordinator.open(nodes, clock.now()), Transcript()
    journal.opened(opened.number)
    exchange.run(grid, coordinator, opened, wire_log, clock, patience.poll)
    closing()
    proof = journal.spent(coordinator.spend())
    group, counted, short = str(opened.number), coordinator.counted, coordinator.short
    traffic = Traffic(opened.number, *wire_log.traffic(group), wire_log.digest(group), counted, short)
    if short:
        coordinator.abort(proof)
        journal.aborted(traffic)
        raise RoundAborted(f"Round {opened.number} was aborted: {counted} replies counted. Look after the devices.")
    params = coordinator.close(proof)
    journal.closed(params, traffic, coordinator.state)


def _connected(grid: Grid, enough: int, patience: Patience, clock: Clock) -> list[int]:
    """Node ids, once enough are there: Flower may start `main` before any is."""
    deadline = clock.now() + patience.connect
    while len(nodes := sorted(grid.get_node_ids())) < max(1, enough):
        if clock.now() >= deadline:
            raise RemoteError(f"Of {enough} devices {len(nodes)} are connected. Start the others and run again.")
        clock.sleep(max(patience.poll, 1e-3))
    return nodes


def make_server_app(start: Callable[[Context], tuple[Coordinator, Journal, int, Patience]]) -> ServerApp:
    """A ServerApp whose `main` runs what `start` prepares from Flower's run config."""
    app = ServerApp()

    def main(grid: Grid, context: Context) -> None:
        coordinator, journal, until, patience = start(context)
        run_rounds(grid, coordinator, journal, until=until, patience=patience, progress=_say)

    app.main()(main)
    return app


def _say(done: int, until: int) -> None:
    _log.warning("Round %d of %d is closed.", done, until)
