"""Run the devices of an in-process federation in worker processes; this module is the coordinator's side.

Invariants
- A device belongs to one worker for the whole federation: its place in the order of nodes, modulo their number.
- One thread for each worker sends a request and reads its reply before the next. Each worker gets a content once.
- Replies are returned in the order of the requests. At most `AHEAD` for each worker are read before their turn.
- A worker that dies, or is silent for `patience` seconds over one device, raises `WorkerLost`, and all workers end.
  Its devices do not count as silent: the result of a round would depend on this machine (I9).

    workers = Workers(fleet, 2)
    workers.ask(requests)
    [workers.wait_for_reply(request) for request in requests]
    workers.close()
"""

import os
import signal
import warnings
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import Pipe, get_context

from fedmem.device.simulation_log import SimulationLog
from fedmem.errors import Refused, RemoteError, UsageError
from fedmem.federation.flower import (
    Message,
    ProtoError,
    ProtoMetadata,
    RecordDict,
    error_from_proto,
    metadata_from_proto,
    metadata_to_proto,
)
from fedmem.sim.fleet import NODE_BASE, Answer, Content, Fleet, Request
from fedmem.sim.worker_process import LONGEST, work

PATIENCE = 3600.0
AHEAD = 4


class WorkerLost(RemoteError):
    """An error: a worker process died or stopped answering. The round stays open, and another run continues it."""


class _Worker:
    """A worker process and the thread that talks to it.

    Raises:
        OSError: the system starts no further process.
    """

    def __init__(self, fleet: Fleet, simulation_log: SimulationLog | None) -> None:
        (their_requests, self._requests), (self._replies, their_replies) = Pipe(False), Pipe(False)
        arguments = (their_requests, their_replies, fleet, simulation_log)
        self.process = get_context("fork").Process(target=work, args=arguments, daemon=True)
        self.thread = ThreadPoolExecutor(1, "fedmem-worker")
        self._content: Content | None = None
        with their_requests, their_replies, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # warns of other threads; the child needs none of them
            self.process.start()

    def exchange(self, request: Request) -> tuple[Answer, bytes]:
        """Send a request, and wait for the answer and the device's notes.

        Raises:
            OSError, EOFError: the worker has ended.
        """
        is_new, self._content = request.content is not self._content, request.content
        self._requests.send_bytes(bytes([is_new]))
        if is_new:
            self._requests.send_bytes(request.content.data)
        self._requests.send_bytes(metadata_to_proto(request.message.metadata).SerializeToString())
        is_error, state, notes, metadata, payload = (self._replies.recv_bytes(LONGEST) for _ in range(5))
        body = error_from_proto(ProtoError.FromString(payload)) if any(is_error) else RecordDict()
        reply = Message(body, metadata=metadata_from_proto(ProtoMetadata.FromString(metadata)))
        return Answer(reply, payload, state), notes


class Workers:
    """Answer requests in `count` processes, which are forked at the first request.

    Args:
        fleet: the devices.
        count: the number of processes, 1 or more.
        simulation_log: collects the devices' notes, as in `InProcessGrid`.
        patience: seconds of real time that a worker may be silent over one device.

    Raises:
        UsageError: the system cannot fork.
    """

    def __init__(
        self, fleet: Fleet, count: int, simulation_log: SimulationLog | None = None, patience: float = PATIENCE
    ) -> None:
        if not hasattr(os, "fork"):
            raise UsageError("This system cannot fork, so it runs no worker processes. Run with 0 workers.")
        self._fleet, self._count, self._simulation_log, self._patience = fleet, count, simulation_log, patience
        self._started_workers: list[_Worker] = []
        self._worker_of = {node: place % count for place, node in enumerate(fleet.nodes)}
        self._queue: dict[str, Request] = {}
        self._answers: dict[str, Future[tuple[Answer, bytes]]] = {}
        self.close = weakref.finalize(self, _end, os.getpid(), self._started_workers)

    def ask(self, requests: Sequence[Request]) -> None:
        """Queue requests; a request that is already queued runs once.

        Args:
            requests: the requests of a round.

        Raises:
            Refused: the workers have been closed.
            RemoteError: a worker process did not start.
        """
        self._require_open()
        if requests and not self._started_workers:
            self._start()
        for request in requests:
            if (message_id := request.message.metadata.message_id) not in self._answers:
                self._queue[message_id] = request

    def _start(self) -> None:
        # Block interrupts until every process is in the list that `close` ends; workers inherit the mask.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(self._count):
                self._started_workers.append(_Worker(self._fleet, self._simulation_log))
        except OSError as error:
            self.close()
            raise RemoteError(f"A worker process did not start: {error.strerror}. Run with fewer workers.") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def wait_for_reply(self, request: Request) -> Answer:
        """Wait for the answer to a queued request.

        Args:
            request: a request that `ask` was called with.

        Raises:
            WorkerLost: a worker died, or was silent for `patience` seconds.
            Refused: the workers have been closed.
        """
        self._require_open()
        metadata = request.message.metadata
        while self._queue and (metadata.message_id in self._queue or len(self._answers) < AHEAD * self._count):
            self._submit(self._queue.pop(next(iter(self._queue))))
        try:
            answer, notes = self._answers.pop(metadata.message_id).result(self._patience)
        except Exception:  # noqa: BLE001  (after any failure the next exchange would read the rest of this one)
            self.close()
            raise WorkerLost(
                "A worker process ended or stopped answering; the round stays open. Check the free memory, then run "
                "again to continue the round, with fewer workers if needed."
            ) from None
        if self._simulation_log and notes:
            self._simulation_log.put(metadata.dst_node_id - NODE_BASE, notes)
        return answer

    def _submit(self, request: Request) -> None:
        metadata = request.message.metadata
        worker = self._started_workers[self._worker_of[metadata.dst_node_id]]
        self._answers[metadata.message_id] = worker.thread.submit(worker.exchange, request)

    def _require_open(self) -> None:
        if not self.close.alive:
            raise Refused("The workers of this federation have been ended. Make a new grid.")


def _end(owner: int, workers: list[_Worker]) -> None:
    """End processes and threads; in a fork of their owner do nothing."""
    if os.getpid() != owner:
        return
    for worker in workers:
        worker.process.kill()
        worker.thread.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.process.join()
    workers.clear()
