"""I1, from its definition: neighbouring devices, equal transcripts; and every leak we could think of is seen."""

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmem.coordinator.journal import Journal
from fedmem.device.inproc import InprocPort
from fedmem.errors import VersionMismatch
from fedmem.federation import flower_codec as records
from fedmem.federation import wire
from fedmem.federation.client_app import answer_request, make_client_app
from fedmem.federation.device import Device
from fedmem.federation.flower import (
    ArrayRecord,
    ClientApp,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from fedmem.federation.rounds import RoundAborted
from fedmem.vault.crypto.keystore import KeyfileKeys
from fedmem.vault.store.core import Core
from fedmem.vault.store.egress_entry import EgressEntry
from fedmem.vault.store.egress_log import EgressLog
from fedmem.vault.vault import NewRecord, Vault

Make = Callable[..., Any]


@pytest.fixture(params=[0, 2], ids=["one process", "two workers"])
def backend(toy: Make, request: pytest.FixtureRequest) -> Make:
    """A toy federation on each of the backends; Flower's own engine is in tests/e2e/test_flwr_run.py."""
    return partial(toy, workers=request.param)


def transcript(made: Any, app: ClientApp | None = None) -> list[Any]:
    with made.grid(app) as grid:
        # Where every device fails, the federation ends by name; what left until then is compared.
        with suppress(RoundAborted, VersionMismatch):
            made.run(until=2, grid=grid)
        return list(grid.transcript.entries)


class PrivateLife:
    """What goes on beside the federation on a device: learning, search, failure; it stirs every global generator."""

    def __init__(self, notes: Sequence[str]) -> None:
        self.notes = list(notes)

    def __call__(self, index: int) -> None:
        for note in self.notes:
            np.random.seed(len(note))  # noqa: NPY002
            np.random.rand(len(note))  # noqa: NPY002
            random.seed(note)
        if self.notes:
            self.notes.pop()


@pytest.mark.parametrize("notes", [["a diagnosis"], ["a diagnosis", "a debt", "a diary entry"] * 20])
def test_the_bytes_on_the_wire_do_not_depend_on_private_records(backend: Make, notes: list[str]) -> None:
    want = transcript(backend(before=PrivateLife([])))
    assert transcript(backend(before=PrivateLife(notes))) == want
    assert len(want) == 2 * 2 * 4


def test_the_transcript_does_depend_on_shareable_records(backend: Make) -> None:
    other = backend(texts=[["one"], ["two", "three!"], [], ["four"]])
    assert transcript(other) != transcript(backend())


def test_the_same_seed_gives_the_same_transcript(backend: Make) -> None:
    noisy = {"noise_multiplier": 1.0, "sampling_rate": 0.7}
    assert transcript(backend(**noisy)) == transcript(backend(**noisy))


def test_every_reply_has_the_size_of_the_schema(backend: Make) -> None:
    entries = [entry for entry in transcript(backend()) if entry.direction == "up"]
    assert len({entry.nbytes for entry in entries}) == 1
    assert {entry.message for entry in entries} == {wire.TRAIN_ANCHOR}


def test_a_reply_holds_the_update_and_nothing_else(toy: Make) -> None:
    made = toy()
    content = records.to_request(made.coordinator().open([1000]).request)
    for reply in made.grid().send_and_receive(
        [Message(content, 1000 + index, wire.TRAIN_ANCHOR) for index in range(4)]
    ):
        assert {name: sorted(record) for name, record in reply.content.items()} == {"update": ["b", "w"]}


def explode(texts: Sequence[str]) -> Callable[..., wire.Params]:
    def train(params: wire.Params, config: Any) -> wire.Params:
        raise RuntimeError(f"could not learn {texts}")

    return train


def diverge(texts: Sequence[str]) -> Callable[..., wire.Params]:
    return lambda params, config: {name: value * np.float32(np.nan) for name, value in params.items()}


def forget(texts: Sequence[str]) -> Callable[..., wire.Params]:
    return lambda params, config: {}


def rest(texts: Sequence[str]) -> Callable[..., wire.Params]:
    return lambda params, config: params


@pytest.mark.parametrize("train", [explode, diverge, forget])
def test_a_device_that_fails_sends_what_an_idle_one_sends(backend: Make, train: Any) -> None:
    assert transcript(backend(train=train)) == transcript(backend(train=rest))


def test_a_device_that_cannot_be_built_sends_what_an_idle_one_sends(backend: Make) -> None:
    def broken(index: int) -> None:
        raise RuntimeError("the vault of a patient is locked")

    assert transcript(backend(before=broken)) == transcript(backend(train=rest))


def leaky(made: Any, leak: Callable[[RecordDict, Context], Any]) -> ClientApp:
    """The real app with a leak planted between it and Flower."""
    app = ClientApp()

    def train(message: Message, context: Context) -> Message:
        content = answer_request(made.device, message.content, context)
        planted = leak(content, context)
        return Message(planted if isinstance(planted, Error) else content, reply_to=message)

    app.train("anchor")(train)
    return app


def metric(note: str) -> Callable[[RecordDict, Context], Any]:
    return lambda content, context: content.__setitem__("metrics", MetricRecord({"num-examples": len(note)}))


def low_bit(note: str) -> Callable[[RecordDict, Context], Any]:
    def plant(content: RecordDict, context: Context) -> None:
        fields = records.from_reply(content, wire.anchor_reply({"b": (3,), "w": (4, 3)}, clip=1.0))
        arrays = {name: array.copy() for name, array in fields.arrays.items()}
        arrays["b"][0] += len(note) % 2
        content["update"] = records.to_reply(wire.Fields(arrays))["update"]

    return plant


def key(note: str) -> Callable[[RecordDict, Context], Any]:
    return lambda content, context: content.__setitem__(note, ConfigRecord({}))


def order(note: str) -> Callable[[RecordDict, Context], Any]:
    def plant(content: RecordDict, context: Context) -> None:
        names = sorted(content["update"], reverse=len(note) % 2 == 1)
        content["update"] = ArrayRecord({name: content["update"][name] for name in names})

    return plant


def state(note: str) -> Callable[[RecordDict, Context], Any]:
    return lambda content, context: context.state.__setitem__("seen", ConfigRecord({"note": note}))


def error(note: str) -> Callable[[RecordDict, Context], Any]:
    return lambda content, context: Error(1, f"could not learn {note}")


LEAKS = [metric, low_bit, key, order, state, error]


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_planted_in_the_wire_is_seen(backend: Make, leak: Callable[[str], Any]) -> None:
    one, two = backend(), backend()
    first = transcript(one, leaky(one, leak("a debt")))
    assert first != transcript(two, leaky(two, leak("a diagnosis")))
    # The negative control: the same bench without a leak sees nothing.
    clean = backend()
    assert transcript(clean, leaky(clean, lambda content, context: None)) == transcript(backend())


@pytest.mark.parametrize("leak", [metric, key, error])
def test_a_reply_with_a_leak_is_not_counted(backend: Make, leak: Callable[[str], Any]) -> None:
    made = backend()
    with pytest.raises(RoundAborted):
        made.run(until=1, grid=made.grid(leaky(made, leak("a debt"))))
    journal = Journal(made.root)
    assert [row.counted for row in journal.traffic()] == [0]
    assert journal.resume().params is None


def test_what_is_sent_is_in_the_egress_list(toy: Make) -> None:
    made = toy()
    grid = made.grid()
    made.run(until=2, grid=grid)
    entries = [entry for port in made.ports for entry in port.egress]
    assert [entry.number for entry in entries] == [1] * 4 + [2] * 4
    assert {entry.nbytes for entry in entries} == {15 * 4}


SECRET = "the patient's name is in no reach of this process"


class View(Sequence[str]):
    """Texts that are read out of the vault when they are asked for: a way back into it."""

    def __init__(self, vault: Any) -> None:
        self.vault = vault

    def __len__(self) -> int:
        return len(self.vault.records(None))

    def __getitem__(self, index: Any) -> Any:
        return [record.text for record in self.vault.records(None)][index]


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))
    with Vault.create(tmp_path / "vault", subject="ada", keystore="keyfile", simulated=True) as made:
        vector = np.zeros(4, np.float32)
        made.add_records([
            NewRecord("a public text", None, (0,), vector, "r"), NewRecord(SECRET, "health", (0,), vector, "r"),
        ])  # fmt: skip
        yield made


def app_on(port: InprocPort, toy: Make) -> ClientApp:
    made = toy()
    device = Device(0, port, made.plan, wire.shapes_of(made.coordinator().params), made.train(port.shareable()))
    return make_client_app(lambda context: device)


def reaches(things: list[object], vault: Any) -> bool:
    return any(thing is vault or (isinstance(thing, str) and thing == SECRET) for thing in things)


def test_nothing_in_the_flower_process_reaches_the_vault(vault: Any, toy: Make, reachable: Any) -> None:
    made = toy()
    port = InprocPort(View(vault), made.plan, wire.shapes_of(made.coordinator().params))
    assert list(port.shareable()) == ["a public text"]
    grid = toy().grid(app_on(port, toy))
    assert "a public text" in reachable(grid)
    assert not reaches(reachable(grid), vault)


def test_after_its_rounds_it_holds_lines_of_what_left_and_still_no_way_back(
    vault: Any, toy: Make, reachable: Any
) -> None:
    made = toy(texts=[["a public text"]])
    port = InprocPort(View(vault), made.plan, wire.shapes_of(made.coordinator().params))
    grid = made.grid(app_on(port, toy))
    made.run(until=2, grid=grid)
    held = reachable(grid)
    assert [entry for entry in held if isinstance(entry, EgressEntry)] == port.egress != []
    assert not reaches(held, vault)
    assert not any(isinstance(thing, Vault | Core | EgressLog | KeyfileKeys) for thing in held)


def test_a_way_back_to_the_vault_would_be_found(vault: Any, toy: Make, reachable: Any) -> None:
    class Lazy(InprocPort):
        pass

    made = toy()
    lazy = Lazy([], made.plan, wire.shapes_of(made.coordinator().params))
    for way in (vault, lambda: vault, [{"deep": (vault,)}], View(vault)):
        lazy.way = way  # type: ignore[attr-defined]
        assert reaches(reachable(app_on(lazy, toy)), vault)
