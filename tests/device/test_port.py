"""One contract for both ports, in process and over the socket; and the vault process against a peer that lies."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmem.device.gate import MAX_ROUND
from fedmem.device.inproc import InprocPort
from fedmem.errors import BoundaryViolation, Busy, Refused, StorageError, VersionMismatch
from fedmem.federation import fixedpoint, wire
from fedmem.federation import socket_protocol as protocol
from fedmem.federation.client_app import answer_request
from fedmem.federation.connection import Connection, PeerGone
from fedmem.federation.device import Device, TrainConfig
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.flower import Context, RecordDict
from fedmem.federation.port import NoApproval
from fedmem.federation.terms import Terms
from fedmem.federation.wire import Fields
from tests.device.served import PLAN, SHAPES, TEXTS, Running, raw_update, serving, update

SCHEMA = wire.anchor_reply(SHAPES, PLAN.clip)
BOUND = fixedpoint.cells(PLAN.clip)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with serving(tmp_path / "device") as made:
        yield made


@pytest.fixture(params=["inproc", "socket"])
def port(request: pytest.FixtureRequest, running: Running) -> Any:
    """(port, its egress lines)"""
    if request.param == "socket":
        return running.port(), running.vault.egress
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
    "a round after the plan's last": (update(b=np.array([1, 0, 0], np.int32)), PLAN.rounds + 1),
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
        # The port goes on: the device answers zeros in its place, in a round after the last one too.
        assert port[0].approve(update(), 0).nbytes == SCHEMA.nbytes
        assert port[0].approve(update(), PLAN.rounds + 1).nbytes == SCHEMA.nbytes
        assert [entry.number for entry in port[1]] == [0, PLAN.rounds + 1]

    def test_a_device_behind_it_answers_and_is_silent_alike(self, port) -> None:
        def train(params: wire.Params, config: TrainConfig) -> wire.Params:
            raise RuntimeError("text of a record")

        device = Device(0, port[0], PLAN, SHAPES, train)
        assert not any(array.any() for array in device.answer(Fields({})).arrays.values())
        assert len(port[1]) == 1


LIES = {
    "a cell out of range": raw_update(b=np.array([BOUND + 1, 0, 0], np.int32)),
    "a norm over the clip": raw_update(b=np.array([BOUND, BOUND, 0], np.int32)),
    "no such round": raw_update(MAX_ROUND + 1),
}


@pytest.mark.parametrize("payload", LIES.values(), ids=LIES.keys())
def test_the_vault_process_refuses_what_a_lying_flower_process_says(running: Running, payload: bytes) -> None:
    made = running.raw()
    assert made.receive({protocol.WELCOME: 0}) == (protocol.WELCOME, b"")
    made.send(protocol.UPDATE, payload)
    assert made.receive({protocol.REFUSED: 1, protocol.RELEASED: 32}) == (protocol.REFUSED, protocol.BOUNDARY)
    assert (running.vault.egress, running.server.released) == ([], 0)


BREAKS: dict[str, tuple[int, bytes]] = {
    "an update that is too short": (protocol.UPDATE, raw_update()[:-1]),
    "an update that is too long": (protocol.UPDATE, raw_update() + b"\0"),
    "an empty update": (protocol.UPDATE, b""),
    "an unknown kind": (77, b""),
    "an answer's kind": (protocol.RELEASED, bytes(32)),
    "a second greeting": (protocol.HELLO, bytes(64)),
    "a question with content": (protocol.RECORDS, b"x"),
}


def closed(made: Connection) -> bool:
    """Whether the peer closes without another frame."""
    try:
        return made.receive({}) is None
    except PeerGone:  # it closed before it had read all
        return True


@pytest.mark.parametrize(("kind", "payload"), BREAKS.values(), ids=BREAKS.keys())
def test_a_broken_protocol_costs_its_own_connection_only(running: Running, kind: int, payload: bytes) -> None:
    good, bad = running.port(), running.raw()
    assert bad.receive({protocol.WELCOME: 0}) == (protocol.WELCOME, b"")
    with contextlib.suppress(PeerGone):  # it may close before all is written
        bad.send(kind, payload)
    assert closed(bad)
    assert running.vault.egress == []
    assert good.approve(update(), 1).nbytes == SCHEMA.nbytes


@pytest.mark.parametrize("kind", [protocol.RECORDS, protocol.UPDATE])
def test_nothing_is_answered_before_the_greeting(running: Running, kind: int) -> None:
    made = running.raw(None)
    with contextlib.suppress(PeerGone):
        made.send(kind, b"")
    assert closed(made)


OTHERS = [
    Terms(DevicePlan(population=5, rounds=3, sampling_rate=0.5, noise_multiplier=1.0), SHAPES),
    Terms(PLAN, {**SHAPES, "b": (4,)}),
    Terms(DevicePlan(population=4, rounds=3, sampling_rate=0.5, noise_multiplier=1.0, run="another"), SHAPES),
]


@pytest.mark.parametrize("other", OTHERS)
def test_other_terms_are_a_version_mismatch(running: Running, other: Terms) -> None:
    with pytest.raises(VersionMismatch):
        running.port(other)


def test_what_cannot_be_entered_is_not_released(running: Running) -> None:
    port = running.port()
    running.vault.refuses = StorageError("The disk is full.")
    with pytest.raises(Busy):
        port.approve(update(), 1)
    assert running.server.released == 0
    # The vault process goes on, and so does the connection.
    running.vault.refuses = None
    assert port.approve(update(), 1).nbytes == SCHEMA.nbytes


def context() -> Context:
    return Context(1, 1, {}, RecordDict(), {})


def test_a_device_without_approval_answers_nothing(running: Running) -> None:
    """Not even the zeros with which an app answers whatever goes wrong: they would have no line."""
    device = Device(0, running.port(), PLAN, SHAPES, lambda params, config: params)
    running.vault.refuses = StorageError("The disk is full.")
    with pytest.raises(NoApproval) as caught:
        answer_request(lambda context: device, RecordDict(), context())
    assert caught.value.code == 10
    assert not isinstance(caught.value, Exception)  # so no handler answers zeros in its place


def request() -> Fields:
    scalars: dict[str, wire.Scalar] = {
        "protocol": wire.PROTOCOL, "round": 2, "seed": 1, "steps": 1, "batch": 1, "learning_rate": 0.1,
        "memory_learning_rate": 0.1, "plan": PLAN.digest(),
    }  # fmt: skip
    return Fields({name: np.zeros(shape, np.uint16) for name, shape in SHAPES.items()}, scalars)


def test_a_vault_that_gives_no_records_now_is_answered_for_with_zeros_that_are_entered(running: Running) -> None:
    port = running.port()

    def train(params: wire.Params, config: TrainConfig) -> wire.Params:
        running.vault.refuses = Busy("The vault is being erased.")
        try:
            port.shareable()
        finally:
            running.vault.refuses = None
        return params

    answer = Device(0, port, PLAN, SHAPES, train).answer(request())
    assert not any(array.any() for array in answer.arrays.values())
    assert [(entry.number, entry.digest) for entry in running.vault.egress] == [(2, answer.digest())]


def test_the_head_is_noted_after_each_answer(running: Running) -> None:
    port = running.port()
    for number in (1, 2):
        port.approve(update(), number)
    port.shareable()  # a later request is answered after what the earlier one left to do
    assert (running.server.released, running.vault.settled) == (2, 2)


def test_a_training_stops_when_a_record_it_got_is_erased_and_zeros_are_entered(running: Running) -> None:
    port, seconds = running.port(), []

    def train(params: wire.Params, config: TrainConfig) -> wire.Params:
        port.shareable()
        running.vault.erased, running.vault.openings = True, 2
        start = time.monotonic()
        try:
            while time.monotonic() < start + 20:
                time.sleep(0.01)
        finally:
            seconds.append(time.monotonic() - start)
        return {name: value + 1 for name, value in params.items()}

    before = signal.getsignal(signal.SIGUSR1)
    answer = Device(0, port, PLAN, SHAPES, port.watched(train)).answer(request())
    assert seconds[0] < 5
    assert not any(array.any() for array in answer.arrays.values())
    assert [entry.digest for entry in running.vault.egress] == [answer.digest()]
    assert signal.getsignal(signal.SIGUSR1) is before


def test_an_update_that_was_trained_on_an_erased_record_is_not_released(running: Running) -> None:
    port = running.port()
    port.shareable()
    running.vault.erased = True
    with pytest.raises(PeerGone):
        port.approve(update(), 1)
    assert running.vault.egress == []


def test_after_the_connection_was_closed_for_an_erasure_only_zeros_are_released(running: Running) -> None:
    port = running.port()
    port.shareable()
    running.vault.erased, running.vault.openings = True, 2
    limit = time.monotonic() + 5
    while not port._connection.is_closed():
        assert time.monotonic() < limit
        time.sleep(0.02)
    with pytest.raises(PeerGone):
        port.approve(update(b=np.array([1, 0, 0], np.int32)), 1)
    assert running.vault.egress == []
    assert port.approve(update(), 1).nbytes == SCHEMA.nbytes


def test_a_training_stops_with_the_vault_process_and_nothing_is_answered(tmp_path: Path) -> None:
    with serving(tmp_path / "device") as running:
        port = running.port()

        def train(params: wire.Params, config: TrainConfig) -> wire.Params:
            running.end()
            time.sleep(20)
            return params

        start = time.monotonic()
        with pytest.raises(NoApproval):
            Device(0, port, PLAN, SHAPES, port.watched(train)).answer(request())
        assert time.monotonic() - start < 10


def test_in_another_thread_a_training_runs_on_and_its_end_is_not_released(tmp_path: Path) -> None:
    with serving(tmp_path / "device") as running:
        port, ended = running.port(), list[object]()

        def train(params: wire.Params, config: TrainConfig) -> wire.Params:
            running.end()
            return params

        def work() -> None:
            try:
                Device(0, port, PLAN, SHAPES, port.watched(train)).answer(request())
            except NoApproval as error:
                ended.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(10)
        assert len(ended) == 1


def test_a_folder_that_others_may_enter_is_refused(running: Running) -> None:
    os.chmod(running.folder, 0o750)
    with pytest.raises(Refused):
        running.port()
