"""Worker processes seen from outside, and a ClientApp of one function."""

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from fedmem.federation import flower_codec as records
from fedmem.federation import wire
from fedmem.federation.client_app import make_client_app
from fedmem.federation.flower import ClientApp, Context, Message, RecordDict
from fedmem.sim.inproc_grid import NODE_BASE, InProcessGrid
from tests.federation.conftest import Toy


def pids(grid: InProcessGrid) -> list[int]:
    assert grid._workers is not None
    return [worker.process.pid for worker in grid._workers._started_workers]


def gone(pid: int) -> bool:
    """Return True if there is no such process, soon."""
    limit = time.monotonic() + 5
    while time.monotonic() < limit:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        state = Path(f"/proc/{pid}/stat")
        with contextlib.suppress(OSError):
            if state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        time.sleep(0.02)
    return False


def children() -> set[str]:
    """Ids of this process's children, dead ones included that nobody has waited for."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {pid for task in tasks for pid in task.read_text(encoding="ascii").split()}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No test leaves a child behind, dead or alive; other tests of this process may have some."""
    before = children()
    yield
    gc.collect()
    assert children() <= before


def echo(act: Callable[[Message, Context], RecordDict]) -> ClientApp:
    app = ClientApp()
    app.train("anchor")(lambda message, context: Message(act(message, context), reply_to=message))
    return app


def files(root: Path) -> dict[str, bytes]:
    """Everything on disk: journal, ledger, checkpoints."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def clients(made: Toy) -> dict[int, ClientApp]:
    return dict.fromkeys(range(len(made.texts)), make_client_app(made.device))


def requests(made: Toy, order: Sequence[int]) -> list[Message]:
    content = records.to_request(made.coordinator().open([NODE_BASE]).request)
    return [Message(content, NODE_BASE + index, wire.TRAIN_ANCHOR, group_id="1") for index in order]
