"""The device that ships is the device that is simulated: the same object, protocol and bytes (I12)."""

import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedmem import Client
from fedmem.device.inproc import InprocPort
from fedmem.device.runtime_folder import runtime_folder
from fedmem.device.served_vault import ServedVault
from fedmem.device.vault_process import listening
from fedmem.federation import wire
from fedmem.federation.device import Device
from fedmem.federation.local_training import load_federated_part, make_release_train
from fedmem.federation.release_shapes import shapes_of
from fedmem.federation.rounds import Coordinator
from fedmem.federation.socket_port import SocketPort
from fedmem.policy.policy import Policy
from fedmem.sdk.places import vault_root
from fedmem.sim.phases.central import pack_with_paths
from fedmem.sim.phases.federated import make_local_train
from fedmem.vault.vault import Vault
from tests.device.test_two_processes import CONSENT
from tests.e2e.replay import Replay


def newest(home: Path) -> Path:
    return max((home / "runs" / "mini" / "releases").glob("*/release.json"), key=os.path.getmtime).parent


def test_shapes_that_another_process_computes_are_those_of_the_parameters(mini_run: Any, home: Path) -> None:
    replay = Replay(newest(home), 2, 4)
    assert shapes_of(replay.folder, replay.agreement) == wire.shapes_of(replay.params)


def test_a_simulated_and_a_deployed_device_answer_with_the_same_bytes(
    mini_run: Any, home: Path, tmp_path: Path
) -> None:
    replay = Replay(newest(home), 2, 4)
    agreement, shapes, scenario = replay.agreement, wire.shapes_of(replay.params), replay.sim.scenario
    agreement = replace(agreement, rounds=replace(agreement.rounds, steps=3))
    texts = replay.texts(2)[:6]
    request = Coordinator(replay.params, agreement.plan, None, agreement.rounds).open([1000]).request

    simulated = InprocPort(texts, agreement.plan, shapes)
    packed = pack_with_paths(replay.sim, texts)
    trained = make_local_train(load_federated_part(replay.folder, agreement), scenario, *packed)
    want = Device(5, simulated, agreement.plan, shapes, trained).answer(request)
    assert any(array.any() for array in want.arrays.values())

    with Client.open("ida", keystore="keyfile") as client:
        client.add("My diagnosis is diabetes; the doctor prescribed insulin.")
        assert [client.add(text).decision.placement for text in texts] == ["shared"] * 6
    root, over = vault_root("ida"), threading.Event()
    consent = tmp_path / "consent.toml"
    consent.write_text(CONSENT)
    with (
        ServedVault(lambda: Vault.open(root, subject="ida", write=False), Policy.load(consent)) as vault,
        runtime_folder(root, agreement, shapes, replay.folder) as runtime,
        listening(runtime, vault) as server,
    ):
        thread = threading.Thread(target=server.serve, args=(over.is_set,))
        thread.start()
        try:
            port = SocketPort(runtime.folder, runtime.terms(), runtime.token())
            train = port.watched(make_release_train(runtime.release(), runtime.agreement(), port.shareable))
            got = Device(5, port, runtime.terms().plan, runtime.terms().shapes, train).answer(request)
            port.close()
        finally:
            over.set()
            thread.join()
    assert got.digest() == want.digest()
    with Client.open("ida", keystore="keyfile", write=False) as client:
        lines = client.egress.since()
    assert [(line.round, line.nbytes, line.digest) for line in lines] == [
        (entry.number, entry.nbytes, entry.digest) for entry in simulated.egress
    ]
