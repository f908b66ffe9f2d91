"""Worker processes for the devices of an in-process federation, seen from the coordinator's process.

Invariants
- A device belongs to one worker for good (its place in the order of nodes, modulo the number of workers), so its
  context lies in one place. A content goes to each worker once, whatever the cohort; nothing is pickled.
- A worker is asked only while it owes nothing, so neither side waits for the other to read. Replies that come before
  their turn are kept, at most `AHEAD` of a worker; further ones wait in their worker, and memory stays flat.
- Which worker answers first changes nothing: what a device says is handed out with its reply, in the order asked.
- A worker that dies, or is silent for `patience` seconds over one device, is `WorkerLost`, and all of them are ended.
  Its devices are not taken for silent: that would change the round's result by what happened on this machine (I9).

    workers = Workers(fleet, 2)
    workers.ask(requests)
    [workers.reply(request) for request in requests]
    workers.close()
"""

import contextlib
import os
import select
import signal
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fedmem.errors import FedmemError, Refused, RemoteError, UsageError
from fedmem.federation import worker_process
from fedmem.federation.fleet import NODE_BASE, Answer, Content, Fleet, Request
from fedmem.federation.flower import (
    Message,
    ProtoError,
    ProtoMetadata,
    RecordDict,
    error_from_proto,
    metadata_from_proto,
    metadata_to_proto,
)
from fedmem.federation.pipe import PeerGone, Pipe
from fedmem.federation.worker_process import ASIDE, BODY, CONTENT, ERROR, GO, JOB, LONGEST, META, STATE, Aside

PATIENCE = 3600.0
AHEAD = 4
_ANSWERED = dict.fromkeys((STATE, ASIDE, META, BODY, ERROR), LONGEST)


class WorkerLost(RemoteError):
    """A worker process died or fell silent; the round stays open, and running again goes on with it."""


@dataclass(eq=False)
class _Worker:
    """One process: the message ids that it has yet to answer, in order, and answers that came before their turn."""

    pid: int
    reading: int
    pipe: Pipe
    owed: deque[str] = field(default_factory=deque)
    early: dict[str, tuple[Answer, bytes]] = field(default_factory=dict)

    def ask(self, requests: Sequence[Request]) -> None:
        """Send the jobs, each content once."""
        content: Content | None = None
        for request in requests:
            if request.content is not content:
                content = request.content
                self.pipe.send(CONTENT, content.data)
            self.pipe.send(JOB, metadata_to_proto(request.message.metadata).SerializeToString())
            self.owed.append(request.message.metadata.message_id)
        self.pipe.send(GO)

    def take(self) -> None:
        """Wait for the next answer."""
        parts: dict[int, bytes] = {}
        while not parts.keys() & {BODY, ERROR}:
            if (frame := self.pipe.receive(_ANSWERED)) is None:
                raise PeerGone("A worker process ended.")
            parts[frame[0]] = bytes(frame[1])
        metadata = metadata_from_proto(ProtoMetadata.FromString(parts[META]))
        failed = ERROR in parts
        body = error_from_proto(ProtoError.FromString(parts[ERROR])) if failed else RecordDict()
        reply, payload = Message(body, metadata=metadata), parts[ERROR if failed else BODY]
        self.early[self.owed.popleft()] = Answer(reply, payload, parts.get(STATE, b"")), parts.get(ASIDE, b"")


class Workers:
    """`count` processes for the devices of `fleet`, forked when they are first asked. See `InProcessGrid`."""

    def __init__(self, fleet: Fleet, count: int, aside: Aside | None = None, patience: float = PATIENCE) -> None:
        if not hasattr(os, "fork"):
            raise UsageError("This system cannot fork, so it runs no worker processes. Run with 0 workers.")
        self._fleet, self._count, self._aside, self._patience = fleet, count, aside, patience
        self._all: list[_Worker] = []
        self._of: dict[int, _Worker] = {}
        self._asked: dict[str, _Worker] = {}
        self.close = weakref.finalize(self, _end, os.getpid(), self._all)

    def ask(self, requests: Sequence[Request]) -> None:
        """Send out requests; one that was sent before is not sent again. Raises WorkerLost."""
        if not self.close.alive:
            raise Refused("The workers of this federation have been ended. Make a new grid.")
        if requests and not self._all:
            self._start()
        shares: dict[_Worker, list[Request]] = {}
        for request in requests:
            if (message_id := request.message.metadata.message_id) not in self._asked:
                self._asked[message_id] = worker = self._of[request.message.metadata.dst_node_id]
                shares.setdefault(worker, []).append(request)
        with self._or_lost():
            for worker, share in shares.items():
                while worker.owed:
                    worker.take()
                worker.ask(share)

    def _start(self) -> None:
        fleet, aside = self._fleet, self._aside
        try:
            for _ in range(self._count):
                pid, reading, writing = worker_process.fork(lambda pipe: worker_process.serve(pipe, fleet, aside))
                self._all.append(_Worker(pid, reading, Pipe(reading, writing, self._patience)))
        except RemoteError:
            self.close()
            raise
        self._of = {node: self._all[place % self._count] for place, node in enumerate(self._fleet.nodes)}

    def reply(self, request: Request) -> Answer:
        """The answer to a request that was asked; waits for it. Raises WorkerLost."""
        metadata = request.message.metadata
        worker, limit = self._asked.pop(metadata.message_id), time.monotonic() + self._patience
        with self._or_lost():
            while metadata.message_id not in worker.early:
                self._gather(worker, limit)
        answer, said = worker.early.pop(metadata.message_id)
        if self._aside and said:
            self._aside.put(metadata.dst_node_id - NODE_BASE, said)
        return answer

    def _gather(self, wanted: _Worker, limit: float) -> None:
        """Take an answer of every worker that has one, and has not run too far ahead."""
        poll, by_number = select.poll(), dict[int, _Worker]()
        for worker in self._all:
            if worker.owed and (worker is wanted or len(worker.early) < AHEAD):
                poll.register(worker.reading, select.POLLIN)
                by_number[worker.reading] = worker
        ready = poll.poll(max(0.0, limit - time.monotonic()) * 1000)
        if not ready:
            raise PeerGone("A worker process is silent.")
        for number, _ in ready:
            by_number[number].take()

    @contextlib.contextmanager
    def _or_lost(self) -> Iterator[None]:
        try:
            yield
        except FedmemError:
            self.close()
            raise WorkerLost(
                "A worker process ended or fell silent over a device; the round stays open. Look after memory, and run "
                "again to go on with it, with fewer workers if need be."
            ) from None


def _end(owner: int, workers: list[_Worker]) -> None:
    """End the processes, which have nothing to lose; where this is a fork of their owner, they are not ours to end."""
    if os.getpid() != owner:
        return
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
    for worker in workers:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(worker.pid, 0)
        worker.pipe.close()
    workers.clear()
