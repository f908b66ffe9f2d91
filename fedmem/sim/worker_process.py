"""Run simulated devices in a forked worker process.

Invariants
- Messages are bytes over two one-way pipes. Their length is checked before they are read. Nothing is unpickled.
- A worker keeps its pipes, the sentinel of its parent, and stderr. It keeps no lock, file or socket of its parent.
- It computes in one thread, blocks interrupts of the terminal, and exits when its parent exits.
- The text of an exception stays in the worker, since it may quote a record.

| message | parts, one `send_bytes` each |
|---|---|
| request | 1 and the content if it differs from the last one, else 0; metadata |
| reply | 1 for an error, else 0; context state; notes (see `SimulationLog`); metadata; payload |

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
"""The greatest length of a part, in bytes. A payload of Flower is one protobuf message, and 2 GiB is their limit."""


def work(requests: Connection, replies: Connection, fleet: Fleet, simulation_log: SimulationLog | None) -> NoReturn:
    """Answer requests until the parent closes the pipe, then exit the process.

    Args:
        requests: the pipe to read from.
        replies: the pipe to write to.
        fleet: the devices.
        simulation_log: collects the devices' notes; None to send no notes.
    """
    try:
        _detach(requests, replies)
        content = Content(b"")
        while True:
            if any(requests.recv_bytes(LONGEST)):
                content = Content(requests.recv_bytes(LONGEST))
            metadata = metadata_from_proto(ProtoMetadata.FromString(requests.recv_bytes(LONGEST)))
            _answer(replies, fleet, Request(Message(RecordDict(), metadata=metadata), content), simulation_log)
    except EOFError:
        os._exit(0)
    except BaseException as error:  # noqa: BLE001  (multiprocessing would print the error's text)
        _log.error("A worker process ends: %s", type(error).__name__)
    finally:
        os._exit(1)


def _answer(replies: Connection, fleet: Fleet, request: Request, simulation_log: SimulationLog | None) -> None:
    index = request.message.metadata.dst_node_id - NODE_BASE
    if simulation_log:
        simulation_log.take(index)  # the parent has the notes from before the fork
    reply, payload, state = fleet.answer(request)
    notes = simulation_log.take(index) if simulation_log else b""
    metadata = metadata_to_proto(reply.metadata).SerializeToString()
    for part in (bytes([reply.has_error()]), state, notes, metadata, payload):
        replies.send_bytes(part)


def _detach(*pipes: Connection) -> None:
    """Release everything that belongs to the parent, compute in one thread, and exit when the parent exits."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    null = os.open(os.devnull, os.O_RDWR)
    kept_numbers = {2, null, parent.sentinel, *(pipe.fileno() for pipe in pipes)}
    # Replaced, not closed: garbage collection may close the parent's descriptors here, and no number may be reused.
    for number in {int(name) for name in os.listdir("/dev/fd")} - kept_numbers:
        os.dup2(null, number, inheritable=False)
    os.dup2(2, 1)  # stdout carries data of the parent
    # A thread of the parent, which does not run here, may hold the lock of the old object, as a progress bar does.
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["OMP_NUM_THREADS"] = "1"
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
    threading.Thread(target=_exit_after, args=[parent], daemon=True).start()


def _exit_after(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
