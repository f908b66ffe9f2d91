"""Flower apps as thin shells: a ClientApp around `Device`, a ServerApp loop around `Coordinator`.

Invariants
- A handler never raises: Flower would send the exception's text to the server. It answers with zeros instead.
- `evaluate` has no handler, so it is refused; nor has any message type that the wire does not name.
- Flower's `Context.state` stays empty: it is copied with each message.
- The loop is one for every Grid: in process, Flower's simulation engine, SuperLink. Replies are added as they arrive.

>>> make_client_app(lambda context: None).__class__.__name__
'ClientApp'
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fedmem
from fedmem.errors import FedmemError, Refused, RemoteError
from fedmem.federation import fixedpoint, records, wire
from fedmem.federation.coordinator import Coordinator, Round
from fedmem.federation.device import Device
from fedmem.federation.flower import ClientApp, Context, Grid, Message, RecordDict, ServerApp, get_flwr_home
from fedmem.federation.journal import Journal, Traffic
from fedmem.federation.transcript import Transcript, payload
from fedmem.federation.wire import Fields

_log = logging.getLogger("fedmem.coordinator")

DeviceFor = Callable[[Context], Device]
Progress = Callable[[int, int], None]


def make_client_app(device_for: DeviceFor) -> ClientApp:
    """A ClientApp whose device is built by `device_for` from Flower's context (partition id, node and run config)."""
    app = ClientApp()

    def train_anchor(message: Message, context: Context) -> Message:
        return Message(answer(device_for, message.content, context), reply_to=message)

    app.train("anchor")(train_anchor)
    return app


def answer(device_for: DeviceFor, content: RecordDict, context: Context) -> RecordDict:
    """The reply to a `train.anchor` request.

    Guarantees: of one shape whatever happens, and never an exception. If even the device cannot be built, or the vault
    side does not approve, the reply is zeros in the shapes that the request itself named.
    """
    try:
        return records.to_reply(_reply(device_for(context), content))
    except Exception as error:  # noqa: BLE001  (Flower would send the text of whatever is raised here)
        _log.warning("A device could not answer: %s", type(error).__name__)
        return records.to_reply(Fields(dict(fixedpoint.zeros(records.requested_shapes(content)))))


def _reply(device: Device, content: RecordDict) -> Fields:
    try:
        request = records.from_request(content)
    except FedmemError:
        return device.silence()
    return device.answer(request)


@dataclass(frozen=True)
class Patience:
    """How long a coordinator waits, in seconds: for `nodes` devices to connect, and for the replies of one round."""

    nodes: int = 1
    connect: float = 60.0
    replies: float = 3600.0
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
) -> list[Traffic]:
    """Run rounds until `until` are done in all; returns the traffic of every closed round, earlier ones included.

    `progress(done, until)` is told after each round; `closing` is called before one is closed, and what it raises
    leaves the round open. Raises BudgetExceeded before a round the plan does not allow, and
    RemoteError if too few devices connect. Killed anywhere and called again on `resumed(...)`, it gives the same bytes.
    """
    while coordinator.done < until:
        _one_round(grid, coordinator, journal, patience or Patience(), closing or (lambda: None))
        if progress:
            progress(coordinator.done, until)
    return journal.traffic()


def resumed(journal: Journal, make: Callable[[wire.Params | None, int], Coordinator]) -> Coordinator:
    """The coordinator as the journal left it: `make(params, rounds done)`, or `make(None, 0)` at the start."""
    return make(*(journal.resume() or (None, 0)))


def _one_round(
    grid: Grid, coordinator: Coordinator, journal: Journal, patience: Patience, closing: Callable[[], None]
) -> None:
    opened = coordinator.open(_connected(grid, patience))
    journal.opened(opened.number)
    group, wire_log = str(opened.number), Transcript()
    for reply in _exchange(grid, opened, wire_log, patience):
        _count(coordinator, reply)
    closing()
    params = coordinator.close(journal.spent(coordinator.spend()))
    down, up = wire_log.traffic(group)
    journal.closed(params, Traffic(opened.number, down, up, wire_log.digest(group), coordinator.counted))


def _connected(grid: Grid, patience: Patience) -> list[int]:
    """Node ids, once enough are there: Flower may start `main` before any is."""
    deadline = time.monotonic() + patience.connect
    while len(nodes := sorted(grid.get_node_ids())) < max(1, patience.nodes):
        if time.monotonic() > deadline:
            raise RemoteError(
                f"Of {patience.nodes} devices {len(nodes)} are connected. Start the others and run again."
            )
        time.sleep(patience.poll)
    return nodes


def _exchange(grid: Grid, opened: Round, log: Transcript, patience: Patience) -> Iterator[Message]:
    """Send the one request to the whole cohort and yield replies as they come, until all came or time is up."""
    content = records.to_request(opened.request)
    messages = [Message(content, node, wire.TRAIN_ANCHOR, group_id=str(opened.number)) for node in opened.cohort]
    data = payload(messages[0]) if messages else b""
    for message in messages:
        log.add("down", message, data)
    waiting = set(grid.push_messages(messages)) if messages else set()
    deadline = time.monotonic() + patience.replies
    while waiting and time.monotonic() < deadline:
        for reply in grid.pull_messages(sorted(waiting)):
            waiting.discard(reply.metadata.reply_to_message_id)
            log.add("up", reply, payload(reply))
            yield reply
        if waiting:
            time.sleep(patience.poll)


def _count(coordinator: Coordinator, reply: Message) -> None:
    """Count one reply, or leave it out: a device that lies or fails costs its own update only."""
    meta = reply.metadata
    try:
        if reply.has_error() or meta.message_type != wire.TRAIN_ANCHOR or not meta.group_id.isdecimal():
            raise RemoteError("A device answered with an error or with another message type; it was not counted.")
        coordinator.accept(meta.src_node_id, int(meta.group_id), records.from_reply(reply.content))
    except FedmemError as error:
        _log.warning("Node %s: %s", meta.src_node_id, error)


def require_own_installation(app_file: str) -> None:
    """Raise Refused if `fedmem` comes from the Flower bundle that holds `app_file`: a bundle shadows installed code."""
    bundle, loaded = Path(app_file).resolve().parents[1], Path(fedmem.__file__).resolve()
    if bundle.is_relative_to(get_flwr_home().resolve()) and loaded.is_relative_to(bundle):
        raise Refused("This bundle carries its own fedmem. Use one that holds server/ and client/ only.")


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
