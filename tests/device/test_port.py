"""One contract for both ports, in process and over the pipe; and the vault's end against a Flower process that lies."""

import contextlib
import os
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from fedmem.federation.gate import MAX_ROUND, Gate, Terms
from fedmem.federation.pipe_port import PipePort, VaultLost
from fedmem.federation.vault_process import serve

from fedmem.errors import BoundaryViolation, FedmemError, Refused, StorageError, VersionMismatch
from fedmem.federation import apps, dialogue, fixedpoint, pipe_port, wire
from fedmem.federation.device import Device, TrainConfig
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.flower import Context, RecordDict
from fedmem.federation.pipe import BadFrame, PeerGone, Pipe
from fedmem.federation.port import InprocPort
from fedmem.federation.wire import Fields
from fedmem.vault.leaving import EgressEntry

PLAN = DevicePlan(population=4, rounds=3, sampling_rate=0.5, noise_multiplier=1.0)
SHAPES = {"w": (2, 3), "b": (3,), "none": (0,), "one": ()}
TERMS = Terms(PLAN, SHAPES)
SCHEMA = wire.anchor_reply(SHAPES, PLAN.clip)
TEXTS = ["one", "", "zwölf Wörter 漢字 🌲", "x" * 200_000, "line\nline\0line"]
BOUND = fixedpoint.cells(PLAN.clip)


@dataclass
class Held:
    """The vault's side without a vault."""

    egress: list[EgressEntry] = field(default_factory=list)
    refuses: FedmemError | None = None
    settled: int = 0

    def texts(self) -> list[str]:
        return TEXTS

    def enter(self, entry: EgressEntry) -> None:
        if self.refuses:
            raise self.refuses
        self.egress.append(entry)

    def settle(self) -> None:
        self.settled += 1

    def look(self) -> None:
        return None


class Vault:
    """`serve` in a thread, and the Flower process's end of the pipe."""

    def __init__(self) -> None:
        theirs, ours = os.pipe(), os.pipe()
        self.held, self.ended = Held(), list[Any]()
        self.ours, self.theirs = Pipe(ours[0], theirs[1], 2.0), Pipe(theirs[0], ours[1], 2.0)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self.ended.append(serve(self.ours, TERMS, self.held))
        except FedmemError as error:
            self.ended.append(error)
        finally:
            self.ours.close()

    def over(self) -> Any:
        """How serving ended: how many answers were released, or the error."""
        self.theirs.close()
        self._thread.join(5)
        assert not self._thread.is_alive()
        return self.ended[0]


@pytest.fixture
def vault() -> Iterator[Vault]:
    made = Vault()
    yield made
    made.over()


def update(**arrays: Any) -> Fields:
    return Fields({**fixedpoint.zeros(SHAPES), **arrays})


@pytest.fixture(params=["inproc", "pipe"])
def port(request: pytest.FixtureRequest, vault: Vault) -> Any:
    """(port, its egress lines)"""
    if request.param == "pipe":
        return PipePort(vault.theirs, TERMS), vault.held.egress
    inproc = InprocPort(TEXTS, PLAN, SHAPES)
    return inproc, inproc.egress


BAD = {
    "a norm over the clip": (update(b=np.array([BOUND, BOUND, 0], np.int32)), 1),
    "a norm a hair over the clip": (update(b=np.array([BOUND, 1, 0], np.int32)), 1),
    "a cell over the clip": (update(b=np.array([BOUND + 1, 0, 0], np.int32)), 1),
    "the lowest int32": (update(b=np.array([-(2**31), 0, 0], np.int32)), 1),
    "another dtype": (update(b=np.zeros(3, np.float32)), 1),
    "another shape": (update(b=np.zeros((3, 1), np.int32)), 1),
    "an extra array": (update(loss=np.zeros(1, np.int32)), 1),
    "a missing array": (Fields({"w": np.zeros((2, 3), np.int32)}), 1),
    "a scalar": (Fields(update().arrays, {"examples": 3}), 1),
    "a negative round": (update(), -1),
    "no such round": (update(), MAX_ROUND + 1),
    "a round out of every range": (update(), 2**40),
}


class TestContract:
    def test_texts_come_as_they_are_and_again(self, port) -> None:
        assert port[0].shareable() == tuple(TEXTS)
        assert port[0].shareable() == tuple(TEXTS)

    def test_what_fits_is_returned_and_entered_with_all_that_is_public(self, port) -> None:
        fields = update(b=np.array([BOUND, 0, 0], np.int32))
        assert port[0].approve(fields, 2) is fields
        (entry,) = port[1]
        assert (entry.message, entry.number, entry.nbytes) == ("train.anchor", 2, SCHEMA.nbytes)
        assert (entry.digest, entry.plan, entry.run) == (fields.digest(), PLAN.digest(), PLAN.run)
        assert entry.delta == PLAN.delta
        assert (entry.spend["sampling_rate"], entry.spend["noise_multiplier"], entry.spend["steps"]) == (0.5, 1.0, 1)

    @pytest.mark.parametrize(("fields", "number"), BAD.values(), ids=BAD.keys())
    def test_what_does_not_fit_is_refused_and_not_entered(self, port, fields: Fields, number: int) -> None:
        with pytest.raises(BoundaryViolation):
            port[0].approve(fields, number)
        assert port[1] == []
        # The port goes on: the device answers zeros in its place.
        assert port[0].approve(update(), 0).nbytes == SCHEMA.nbytes
        assert [entry.number for entry in port[1]] == [0]

    def test_a_device_behind_it_answers_and_is_silent_alike(self, port) -> None:
        def train(params: wire.Params, config: TrainConfig) -> wire.Params:
            raise RuntimeError("text of a record")

        device = Device(0, port[0], PLAN, SHAPES, train)
        assert not any(array.any() for array in device.answer(Fields({})).arrays.values())
        assert len(port[1]) == 1


def raw(number: int = 1, **arrays: Any) -> bytes:
    cells = {**fixedpoint.zeros(SHAPES), **arrays}
    return struct.pack("<I", number) + b"".join(np.ascontiguousarray(cells[name]).tobytes() for name in sorted(cells))


LIES = {
    "a cell out of range": raw(b=np.array([BOUND + 1, 0, 0], np.int32)),
    "a norm over the clip": raw(b=np.array([BOUND, BOUND, 0], np.int32)),
    "no such round": raw(MAX_ROUND + 1),
}


@pytest.mark.parametrize("payload", LIES.values(), ids=LIES.keys())
def test_the_vault_process_refuses_what_a_lying_flower_process_says(vault: Vault, payload: bytes) -> None:
    PipePort(vault.theirs, TERMS)
    vault.theirs.send(dialogue.UPDATE, payload)
    answer = vault.theirs.receive({dialogue.REFUSED: 1, dialogue.RELEASED: 32})
    assert answer == (dialogue.REFUSED, dialogue.BOUNDARY)
    assert vault.held.egress == []
    assert vault.over() == 0


BREAKS: dict[str, tuple[int, bytes]] = {
    "an update that is too short": (dialogue.UPDATE, raw()[:-1]),
    "an update that is too long": (dialogue.UPDATE, raw() + b"\0"),
    "an empty update": (dialogue.UPDATE, b""),
    "an unknown kind": (77, b""),
    "an answer's kind": (dialogue.RELEASED, bytes(32)),
    "a second greeting": (dialogue.HELLO, bytes(32)),
    "a question with content": (dialogue.RECORDS, b"x"),
}


@pytest.mark.parametrize(("kind", "payload"), BREAKS.values(), ids=BREAKS.keys())
def test_a_broken_protocol_ends_the_conversation(vault: Vault, kind: int, payload: bytes) -> None:
    PipePort(vault.theirs, TERMS)
    with contextlib.suppress(PeerGone):  # the vault's end may be closed before all is written
        vault.theirs.send(kind, payload)
        assert vault.theirs.receive({}) is None
    assert type(vault.over()) is BadFrame
    assert vault.held.egress == []


@pytest.mark.parametrize("kind", [dialogue.RECORDS, dialogue.UPDATE])
def test_nothing_is_said_before_the_greeting(vault: Vault, kind: int) -> None:
    with contextlib.suppress(PeerGone):
        vault.theirs.send(kind, b"")
        assert vault.theirs.receive({}) is None
    assert type(vault.over()) is BadFrame


OTHERS = [
    Terms(DevicePlan(population=5, rounds=3, sampling_rate=0.5, noise_multiplier=1.0), SHAPES),
    Terms(PLAN, {**SHAPES, "b": (4,)}),
    Terms(DevicePlan(population=4, rounds=3, sampling_rate=0.5, noise_multiplier=1.0, run="another"), SHAPES),
]


@pytest.mark.parametrize("other", OTHERS)
def test_other_terms_are_a_version_mismatch_on_both_sides(vault: Vault, other: Terms) -> None:
    with pytest.raises(VersionMismatch):
        PipePort(vault.theirs, other)
    assert type(vault.over()) is VersionMismatch


def test_what_cannot_be_entered_is_not_released(vault: Vault) -> None:
    port = PipePort(vault.theirs, TERMS)
    vault.held.refuses = StorageError("The disk is full.")
    with pytest.raises(VaultLost) as caught:
        port.approve(update(), 1)
    assert caught.value.code == 10
    assert not isinstance(caught.value, Exception)  # so no handler answers zeros in its place
    assert type(vault.over()) is StorageError


def test_a_device_whose_vault_is_gone_answers_nothing(vault: Vault) -> None:
    """Not even the zeros with which an app answers whatever goes wrong: they would have no line."""
    device = Device(0, PipePort(vault.theirs, TERMS), PLAN, SHAPES, lambda params, config: params)
    vault.held.refuses = StorageError("The disk is full.")
    with pytest.raises(VaultLost):
        apps.answer(lambda context: device, RecordDict(), Context(1, 1, {}, RecordDict(), {}))


def test_the_head_is_noted_after_each_answer(vault: Vault) -> None:
    port = PipePort(vault.theirs, TERMS)
    for number in (1, 2):
        port.approve(update(), number)
    assert vault.over() == 2
    assert vault.held.settled == 2


def impostor(*frames: tuple[int, bytes]) -> Callable[[], PipePort]:
    """A port whose vault process says these frames, whatever it is asked."""
    theirs, ours = os.pipe(), os.pipe()
    pipe = Pipe(ours[0], theirs[1], 1.0)
    pipe.send(dialogue.WELCOME)
    for kind, payload in frames:
        pipe.send(kind, payload)
    port = PipePort(Pipe(theirs[0], ours[1], 0.3), TERMS)
    port.__dict__["kept"] = pipe
    return lambda: port


WRONG = {
    "another digest": [(dialogue.RELEASED, bytes(32))],
    "half a digest": [(dialogue.RELEASED, bytes(16))],
    "a text": [(dialogue.TEXT, b"x")],
    "a long refusal": [(dialogue.REFUSED, b"because of the diagnosis")],
    "silence": [],
}


@pytest.mark.parametrize("frames", WRONG.values(), ids=WRONG.keys())
def test_only_the_digest_of_what_was_asked_releases_it(frames: list[tuple[int, bytes]]) -> None:
    with pytest.raises(VaultLost) as caught:
        impostor(*frames)().approve(update(), 1)
    assert isinstance(caught.value.why, BadFrame | PeerGone)


def test_texts_that_are_no_text_are_not_used() -> None:
    with pytest.raises(VaultLost):
        impostor((dialogue.TEXT, b"\xff"), (dialogue.END, b""))().shareable()


@pytest.mark.parametrize("value", ["", "1", "a,b", "1,2,3", "900,901"])
def test_a_process_that_no_vault_process_started_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(pipe_port.ENDS, value)
    with pytest.raises(Refused):
        pipe_port.connect(TERMS)
    assert pipe_port.ENDS not in os.environ


def test_the_gate_enters_before_it_returns_and_returns_nothing_else() -> None:
    def full(entry: EgressEntry) -> None:
        raise StorageError("The disk is full.")

    with pytest.raises(StorageError):
        Gate(TERMS, full).release(update(), 1)
