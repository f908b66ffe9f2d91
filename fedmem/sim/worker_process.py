"""Run simulated devices in a forked worker process.

Invariants
- Messages are bytes over two one-way pipes, their length judged before they are read. Nothing is unpickled.
- A worker keeps its pipes, the sign that its parent lives, and stderr: no lock, file or socket of its parent.
- It computes in one thread, blocks interrupts of the terminal, and exits when its parent exits.
- The text of an exception stays in the worker: it may quote a record.

| message | parts, one `send_bytes` each |
|---|---|
| request | 1 and the content if it is another than before, else 0; metadata |
| reply | 1 for an error, else 0; context state; notes (see `Noted`); metadata; payload |

    Process(target=work, args=(requests, replies, fleet, None), daemon=True).start()
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import NoReturn

from fedmem.device.simulation_log import SimulationLog
from fedmem.federation.flower import Message, ProtoMetadata, RecordDict, metadata_from_proto, metadata_to_proto
from fedmem.sim.fleet import NODE_BASE, Content, Fleet, Request

_log = logging.getLogger("fedmem.device")

LONGEST = 2**31
"""Longest part of a message, in bytes: a payload of Flower is one protobuf message, and those end here."""


def work(requests: Connection, replies: Connection, fleet: Fleet, aside: SimulationLog | None) -> NoReturn:
    """Answer requests until the parent closes the pipe, then exit the process."""
    try:
        _detach(requests, replies)
        content = Content(b"")
        while True:
            if any(requests.recv_bytes(LONGEST)):
                content = Content(requests.recv_bytes(LONGEST))
            metadata = metadata_from_proto(ProtoMetadata.FromString(requests.recv_bytes(LONGEST)))
            _answer(replies, fleet, Request(Message(RecordDict(), metadata=metadata), content), aside)
    except EOFError:
        os._exit(0)
    except BaseException as error:  # noqa: BLE001  (multiprocessing would print the error's text)
        _log.error("A worker process ends: %s", type(error).__name__)
    finally:
        os._exit(1)


def _answer(replies: Connection, fleet: Fleet, request: Request, aside: SimulationLog | None) -> None:
    index = request.message.metadata.dst_node_id - NODE_BASE
    if aside:
        aside.take(index)  # the parent has the notes from before the fork
    reply, payload, state = fleet.answer(request)
    notes = aside.take(index) if aside else b""
    metadata = metadata_to_proto(reply.metadata).SerializeToString()
    for part in (bytes([reply.has_error()]), state, notes, metadata, payload):
        replies.send_bytes(part)


def _detach(*pipes: Connection) -> None:
    """Let go of all that is the parent's, compute in one thread, and exit when the parent does."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    nothing = os.open(os.devnull, os.O_RDWR)
    kept = {2, nothing, parent.sentinel, *(pipe.fileno() for pipe in pipes)}
    # Not closed but replaced: objects of the parent that are dropped here close a number, and none of them is reused.
    for number in {int(name) for name in os.listdir("/dev/fd")} - kept:
        os.dup2(nothing, number, inheritable=False)
    os.dup2(2, 1)  # stdout is data, and the parent's
    # A thread of the parent that is not here may have locked its own object, a progress bar for instance.
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["OMP_NUM_THREADS"] = "1"
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
    threading.Thread(target=_exit_after, args=[parent], daemon=True).start()


def _exit_after(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
