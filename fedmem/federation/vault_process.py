"""The vault process of a device: it holds the vault, starts the Flower process, and lets out what may leave (§10).

Invariants
- Keys and private records stay here. What is handed out are texts of records that were stored as shareable and that
  policy and floor policy place as shared now: a policy that became stricter takes records back.
- An answer is released after its egress line is durable; where that fails, both processes end and nothing is sent.
- The Flower process is started with a clean environment, no descriptor but the two pipe ends, and no name of the vault.
- The vault is open for reading only: learning, adding and erasing go on beside it and change nothing that leaves (I1).
  An erasure is given way to at once; one that takes a record which was handed out ends the Flower process with it.

Received code runs under the same user of the operating system: what that user may read, it may read. A deployment
gives the Flower process a user or a sandbox of its own.

    host(lambda: Vault.open(root, subject="ana", write=False), terms, Policy.load(), [sys.executable, "device.py"])
"""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fedmem.errors import BoundaryViolation, NothingMatched, RemoteError, VersionMismatch
from fedmem.federation import dialogue
from fedmem.federation.gate import Gate, Terms
from fedmem.federation.keeper import Keeper
from fedmem.federation.pipe import PATIENCE, Pipe
from fedmem.federation.pipe_port import ENDS
from fedmem.federation.switches import SWITCHES
from fedmem.policy.policy import Policy
from fedmem.vault.leaving import EgressEntry
from fedmem.vault.vault import Vault

KEPT = ("PATH", "LANG", "OMP_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
"""What of this process's environment the Flower process gets; none of it names the vault or a secret."""


class Held(Protocol):
    """What `serve` asks of the vault."""

    def texts(self) -> Sequence[str]: ...
    def enter(self, entry: EgressEntry) -> object: ...
    def settle(self) -> None: ...
    def look(self) -> None: ...


def serve(pipe: Pipe, terms: Terms, held: Held) -> int:
    """Answer the Flower process until it leaves; how many answers were released.

    Raises BadFrame, PeerGone, VersionMismatch where the other side breaks the protocol, and what entering a line
    raises: the conversation is over then, and what was asked for is not released.
    """
    gate, released = Gate(terms, held.enter), 0
    _agree(pipe, terms)
    limits = {dialogue.RECORDS: 0, dialogue.UPDATE: dialogue.update_bytes(gate.schema)}
    while (frame := pipe.receive(limits, idle=held.look)) is not None:
        kind, payload = frame
        if kind == dialogue.RECORDS:
            for text in held.texts():
                pipe.send(dialogue.TEXT, text.encode())
            pipe.send(dialogue.END)
        else:
            released += _judge(pipe, gate, payload)
            held.settle()
    return released


def _agree(pipe: Pipe, terms: Terms) -> None:
    frame = pipe.receive({dialogue.HELLO: dialogue.DIGEST_BYTES})
    if frame is not None and bytes(frame[1]) != bytes.fromhex(terms.digest()):
        pipe.send(dialogue.REFUSED, dialogue.TERMS)
        raise VersionMismatch("The Flower process holds other terms than the vault process. Start both from one plan.")
    if frame is not None:
        pipe.send(dialogue.WELCOME)


def _judge(pipe: Pipe, gate: Gate, payload: bytearray) -> bool:
    """Release one update or refuse it; whether it was released."""
    fields, number = dialogue.decode(payload, gate.schema)
    try:
        released = gate.release(fields, number)
    except BoundaryViolation:
        pipe.send(dialogue.REFUSED, dialogue.BOUNDARY)
        return False
    pipe.send(dialogue.RELEASED, bytes.fromhex(released.digest()))
    return True


@dataclass(frozen=True)
class Started:
    """A Flower process and this side's pipe to it."""

    process: "subprocess.Popen[bytes]"
    pipe: Pipe


def host(
    opened: Callable[[], Vault],
    terms: Terms,
    policy: Policy,
    command: Sequence[str],
    *,
    output: Any = subprocess.DEVNULL,
    patience: float = PATIENCE,
) -> int:
    """Be the vault process: open the vault, start the Flower process and serve it to its end.

    Args:
        opened: opens the vault for reading; asked again after an erasure.
        command: the Flower process; it calls `pipe_port.connect`.
        output: where its stdout and stderr go, as `subprocess` takes it; nowhere by default.

    Returns how many answers were released. Raises what opening the vault raises, NothingMatched for a command that
    does not exist, RemoteError where the Flower process died or failed, and what `serve` raises; both have then ended.
    """
    with Keeper(opened, policy, patience) as held, started(command, output, patience) as child:
        released = serve(child.pipe, terms, held)
        try:
            code = child.process.wait(patience)
        except subprocess.TimeoutExpired:
            raise RemoteError("The Flower process left its vault and goes on; it was ended. Start it anew.") from None
    if code:
        raise RemoteError(f"The Flower process ended with code {code}. Look at its output, and start it anew.")
    return released


@contextlib.contextmanager
def started(command: Sequence[str], output: Any, patience: float = PATIENCE) -> Iterator[Started]:
    """The Flower process, with nothing of this one but two pipe ends; it is gone at the end of the block."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    pipe = Pipe(ours_in, ours_out, patience)
    try:
        try:
            process = subprocess.Popen(  # noqa: S603 (a list, no shell)
                command, env=clean_environment(os.environ, theirs_in, theirs_out), close_fds=True,
                pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        except OSError as error:
            raise NothingMatched(f"The Flower process could not be started: {error.strerror}.") from None
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        try:
            yield Started(process, pipe)
        finally:
            process.kill()
            process.wait()
    finally:
        pipe.close()


def clean_environment(known: Mapping[str, str], reading: int, writing: int) -> dict[str, str]:
    """All that the Flower process is told: where its pipe is, the outbound switches off, and speed settings."""
    return {name: known[name] for name in KEPT if name in known} | SWITCHES | {ENDS: f"{reading},{writing}"}
