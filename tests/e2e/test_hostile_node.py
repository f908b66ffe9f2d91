"""A SuperNode of its own making beside an honest device, on a real SuperLink: it costs its own update and nothing else.

The hostile node runs the bundle that `flwr run` sends, in a changed installation that answers by `LIES`.
"""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from fedmem.coordinator.journal import Journal
from tests.e2e.flower import BIN, environment, free_port, superlink
from tests.e2e.test_deployment import TERMS, device, egress, fill, program, rounds

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("flower-supernode", path=BIN) is None, reason="flwr is not installed"),
]

# Loaded by every Python process of the hostile node.
LIES = """
import fedmem.federation.client_app as honest
from fedmem.federation import flower_codec as records
from fedmem.federation.flower import Array, ArrayRecord, ClientApp, ConfigRecord, Message, RecordDict

def one(shape, data, dtype="int32", stype=records.STYPE, **more):
    array = Array(dtype, (1,), stype, b"")
    array.__dict__.update(shape=shape, data=data, **more)
    return RecordDict({"update": ArrayRecord({"w": array})})

LIES = [
    lambda: one((2**32,), bytes(4)),
    lambda: one((3,), bytes(64 << 20)),
    lambda: RecordDict({"update": ConfigRecord({"x" * 100_000: "y" * 1_000_000})}),
    lambda: 1 / 0,
]

def make_client_app(device_for, shapes=None):
    app = ClientApp()
    def train(message, context):
        return Message(LIES[int(message.metadata.group_id) - 1](), reply_to=message)
    app.train("anchor")(train)
    return app

honest.make_client_app = make_client_app
"""
KINDS = 4


def test_a_hostile_node_costs_its_own_update_alone(mini_run: dict[str, Any], home: Path, tmp_path: Path) -> None:
    release = max((home / "runs" / "mini" / "releases").glob("*/release.json"), key=os.path.getmtime).parent
    terms, known = tmp_path / "terms.toml", environment(tmp_path, home)
    text = TERMS.replace("rounds = 2", f"rounds = {KINDS}").format(release=release.name, deadline=120)
    terms.write_text(text)
    fill("ana")
    (tmp_path / "hostile").mkdir()
    (tmp_path / "hostile" / "sitecustomize.py").write_text(LIES)
    lying = {**known, "PYTHONPATH": f"{tmp_path / 'hostile'}{os.pathsep}{known['PYTHONPATH']}"}
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(superlink(known, tmp_path))
        link = ("--superlink", f"127.0.0.1:{port}", "--insecure")
        ana = device("ana", release, terms, *link, "--port", str(free_port()))
        stack.enter_context(program(ana, known, tmp_path / "ana.log"))
        node = [str(BIN / "flower-supernode"), *link, "--isolation", "subprocess", "--port", str(free_port())]
        stack.enter_context(program(node, lying, tmp_path / "node.log"))
        assert rounds(known, release, terms, tmp_path / "out", KINDS) == [(number, 1) for number in range(1, KINDS + 1)]
    assert len(egress("ana", known)) == KINDS
    # What is too large was not even fetched: its row names no more than the honest update and some heads.
    assert max(row.up for row in Journal(tmp_path / "out").traffic()) < 8 << 20
