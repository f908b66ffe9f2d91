"""One worker process of an in-process federation: it is forked, lets go of its parent's things, and runs devices.

Invariants
- It holds two pipe ends and stderr of all descriptors: no lock, file or socket of the parent stays open through it.
- It computes in one thread, leaves interrupts of the terminal to its parent, and ends when that one does.
- It answers jobs in the order in which they came, and writes nothing before it was told to go.

| from the coordinator's process | answer |
|---|---|
| CONTENT, a JOB (metadata) for each device, … , GO | for each JOB: [STATE] [ASIDE] META, then BODY or ERROR |

    pid, reading, writing = fork(lambda pipe: serve(pipe, fleet, None))
"""

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from typing import NoReturn, Protocol

from fedmem.errors import RemoteError
from fedmem.federation.fleet import NODE_BASE, Content, Fleet, Request
from fedmem.federation.flower import Message, ProtoMetadata, RecordDict, metadata_from_proto, metadata_to_proto
from fedmem.federation.pipe import PeerGone, Pipe

_log = logging.getLogger("fedmem.device")

CONTENT, JOB, GO = 1, 2, 3
STATE, ASIDE, META, BODY, ERROR = 11, 12, 13, 14, 15
# A payload of Flower is one protobuf message, and those end here.
LONGEST = 2**31
_ASKED = {CONTENT: LONGEST, JOB: LONGEST, GO: 0}
_FOREVER = 10.0**6  # seconds; a parent that is gone closes its ends


class Aside(Protocol):
    """What devices say on their own side, which is not part of any answer."""

    def take(self, index: int) -> bytes:
        """What device `index` said since this was last called, in the process where it runs."""
        ...

    def put(self, index: int, said: bytes) -> None:
        """Enter that in the coordinator's process."""
        ...


def fork(work: Callable[[Pipe], None]) -> tuple[int, int, int]:
    """A child that does `work` with its end of a pipe; its id, and the descriptors to read from and to write to it.

    Raises RemoteError where the system starts no further process.
    """
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    # An interrupt between the fork and the child's first line would run the parent's code twice.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of other threads: the child needs none of them
            pid = os.fork()
        if pid == 0:
            _be_worker(theirs_in, theirs_out, work)
    except OSError as error:
        os.close(ours_in)
        os.close(ours_out)
        raise RemoteError(f"A worker process did not start: {error.strerror}. Run with fewer workers.") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(theirs_in)
        os.close(theirs_out)
    return pid, ours_in, ours_out


def _be_worker(reading: int, writing: int, work: Callable[[Pipe], None]) -> NoReturn:
    code = 1
    try:
        _let_go({reading, writing})
        pipe = Pipe(reading, writing, _FOREVER)
        threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
        work(pipe)
        code = 0
    except PeerGone:
        pass
    except BaseException as error:  # noqa: BLE001  (whatever it is, it must not run on into the parent's code)
        # The class only: an error's text may quote a record.
        _log.error("A worker process ends: %s", type(error).__name__)
    finally:
        os._exit(code)


def _let_go(own: set[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    # Not closed but replaced: objects of the parent that are dropped here close a number, and none of them is reused.
    for number in {int(name) for name in os.listdir("/dev/fd")} - own - {2, nothing}:
        os.dup2(nothing, number, inheritable=False)
    os.dup2(2, 1)  # stdout is data, and the parent's
    # A thread of the parent that is not here may have locked its own object, a progress bar for instance.
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    os.environ["OMP_NUM_THREADS"] = "1"
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


def _end_with(pipe: Pipe) -> None:
    """End this process soon after its parent, in the middle of a training as well."""
    while not pipe.left():
        pass
    os._exit(1)


def serve(pipe: Pipe, fleet: Fleet, aside: Aside | None) -> None:
    """Run the devices that are asked for, until the parent leaves."""
    content, jobs = Content(b""), list[Request]()
    while (frame := pipe.receive(_ASKED)) is not None:
        kind, data = frame
        if kind == CONTENT:
            content = Content(bytes(data))
        elif kind == JOB:
            metadata = metadata_from_proto(ProtoMetadata.FromString(bytes(data)))
            jobs.append(Request(Message(RecordDict(), metadata=metadata), content))
        else:
            for job in jobs:
                _answer(pipe, fleet, job, aside)
            jobs.clear()


def _answer(pipe: Pipe, fleet: Fleet, job: Request, aside: Aside | None) -> None:
    index = job.message.metadata.dst_node_id - NODE_BASE
    if aside:
        aside.take(index)  # what was said before the fork is known to the parent
    reply, payload, state = fleet.answer(job)
    if state:
        pipe.send(STATE, state)
    if aside and (said := aside.take(index)):
        pipe.send(ASIDE, said)
    pipe.send(META, metadata_to_proto(reply.metadata).SerializeToString())
    pipe.send(ERROR if reply.has_error() else BODY, payload)
