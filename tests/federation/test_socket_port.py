"""A port believes only the digest of the update that it asked for, and texts that are texts."""

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedmem.errors import NothingMatched
from fedmem.federation import connection
from fedmem.federation import socket_protocol as protocol
from fedmem.federation.connection import BadFrame, Connection, PeerGone
from fedmem.federation.device import Device
from fedmem.federation.port import NoApproval
from fedmem.federation.socket_port import SocketPort
from tests.device.served import PLAN, SHAPES, TERMS, TOKEN, update


@contextmanager
def impostor(folder: Path, *frames: tuple[int, bytes]) -> Iterator[SocketPort]:
    """A port whose vault process says these frames once, whatever it is asked."""
    folder.mkdir(mode=0o700)
    listener = connection.listen(folder, 1)

    def say() -> None:
        end, _ = listener.accept()
        listener.close()
        made = Connection(end, 2.0)
        for kind, payload in [(protocol.WELCOME, b""), *frames]:
            made.send(kind, payload)
        with contextlib.suppress(PeerGone, BadFrame):
            made.receive({protocol.HELLO: 64})
            made.receive({protocol.UPDATE: 1000, protocol.RECORDS: 0})
            made.receive({})
        made.close()

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    port = SocketPort(folder, TERMS, TOKEN, 0.3)
    yield port
    port.close()
    thread.join(5)


WRONG = {
    "another digest": [(protocol.RELEASED, bytes(32))],
    "half a digest": [(protocol.RELEASED, bytes(16))],
    "a text": [(protocol.TEXT, b"x")],
    "a long refusal": [(protocol.REFUSED, b"because of the diagnosis")],
    "silence": [],
}


@pytest.mark.parametrize("frames", WRONG.values(), ids=WRONG.keys())
def test_only_the_digest_of_what_was_asked_releases_it(tmp_path: Path, frames: list[tuple[int, bytes]]) -> None:
    with impostor(tmp_path / "device", *frames) as port:
        with pytest.raises(BadFrame if frames else PeerGone):
            port.approve(update(), 1)
        with pytest.raises(NoApproval):  # and nothing is asked of the impostor again
            Device(0, port, PLAN, SHAPES, lambda params, config: params).answer_zeros()


def test_texts_that_are_no_text_are_not_used(tmp_path: Path) -> None:
    frames = [(protocol.TEXT, b"\xff"), (protocol.END, b"")]
    with impostor(tmp_path / "device", *frames) as port, pytest.raises(BadFrame):
        port.shareable()


def test_where_no_vault_process_listens_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "device").mkdir(mode=0o700)
    for folder in (tmp_path / "device", tmp_path / "nothing"):
        with pytest.raises(NothingMatched):
            SocketPort(folder, TERMS, TOKEN)
