"""Threads of one program share one client: nothing acknowledged is lost, no budget is passed, errors are typed."""

import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedmem.errors import Busy, FedmemError
from fedmem.privacy.plan import PrivacyPlan
from fedmem.sdk.client import Client
from fedmem.training.release import Release

HEALTH = "My doctor prescribed tablets, the {} th time."


@pytest.fixture(autouse=True)
def switching() -> Iterator[None]:
    """Threads take turns a hundred times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)


def opened(**options: object) -> Client:
    return Client.open("ana", keystore="keyfile", **options)


def together(*works: Callable[[], object]) -> list[BaseException | None]:
    """Run at once, each in a thread of its own; how each ended."""
    start = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> None:
        start.wait()
        work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.exception() for future in [pool.submit(run, work) for work in works]]


def ids_after_reopening() -> set[str]:
    with opened() as client:
        return {hit.id for hit in client.search("x", k=10_000)}


def test_threads_that_add_lose_nothing() -> None:
    acknowledged: list[str] = []
    with opened() as client:

        def add(name: int) -> None:
            acknowledged.extend(client.add(f"note {name} {number}").id for number in range(25))

        assert together(*(lambda name=name: add(name) for name in range(4))) == [None] * 4
    assert len(set(acknowledged)) == 100
    assert ids_after_reopening() == set(acknowledged)


def test_searches_beside_adds_see_whole_records() -> None:
    with opened() as client:
        client.add(HEALTH.format(0))

        def add() -> None:
            for number in range(30):
                client.add(HEALTH.format(number + 1))

        def search() -> None:
            for _ in range(30):
                assert all(hit.text.startswith("My doctor") for hit in client.search("tablets", k=100))

        assert together(add, search, search) == [None] * 3
        assert len(client.search("tablets", k=100)) == 31


def test_an_erasure_beside_adds_takes_its_topic_and_nothing_else() -> None:
    notes: list[str] = []
    with opened() as client:
        for number in range(10):
            client.add(HEALTH.format(number), topic="health")
        enough = threading.Event()

        def add() -> None:
            while not enough.is_set() or len(notes) < 20:
                notes.append(client.add(f"note {len(notes)} of my friend", topic="notes").id)

        def erase() -> None:
            try:
                assert client.erase.plan(topic="health").execute().state == "completed"
            finally:
                enough.set()

        assert together(add, erase) == [None] * 2
        assert [one.state for one in client.erase.status()] == ["completed"]
    assert ids_after_reopening() == set(notes)


def test_two_erasures_at_once_take_turns() -> None:
    with opened() as client:
        for number in range(5):
            client.add(HEALTH.format(number), topic="health")
            client.add(f"note {number} of my friend", topic="notes")
        plans = [client.erase.plan(topic=topic) for topic in ("health", "notes")]
        ended = together(*(plan.execute for plan in plans))
        # Whichever came second finds that the vault changed since its plan was made, and says so.
        assert sorted(type(error).__name__ for error in ended) == ["NoneType", "Refused"]
        assert len(client.search("x", k=99)) == 5
    assert len(ids_after_reopening()) == 5


def test_two_that_learn_are_charged_once_each_and_never_beyond_the_budget(release: Release) -> None:
    with opened(release=release) as client:
        for number in range(8):
            client.add(HEALTH.format(number), topic="health")
        budget = client._policy.topics["health"].epsilon
        plans = [PrivacyPlan.small(record_cap=1000 + number).calibrate(0.6 * budget) for number in range(2)]
        ended = together(*(lambda plan=plan: client.learn("health", plan) for plan in plans))
        assert all(error is None or isinstance(error, FedmemError) for error in ended)
        assert ended.count(None) >= 1
        assert client.privacy.budget().epsilon <= budget
        client.privacy.verify()
    with opened() as client:
        assert len(client.blocks.list()) == ended.count(None)


def test_the_same_training_in_two_threads_is_busy_and_charged_once(release: Release) -> None:
    with opened(release=release) as client:
        for number in range(8):
            client.add(HEALTH.format(number), topic="health")
        ended = together(lambda: client.learn("health"), lambda: client.learn("health"))
        assert [type(error) for error in ended if error is not None] == [Busy]
        assert len(client.privacy.budget().runs) == 1


def test_close_beside_adds_ends_them_with_a_typed_error() -> None:
    acknowledged: list[str] = []
    client = opened()
    client.add("the first note")
    begun = threading.Event()

    def add() -> None:
        for number in range(1000):
            acknowledged.append(client.add(f"note {number}").id)
            begun.set()

    def close() -> None:
        begun.wait(30)
        client.close()

    added, closed = together(add, close)
    assert closed is None
    assert isinstance(added, FedmemError)
    assert len(ids_after_reopening()) == len(acknowledged) + 1


def test_every_kind_of_operation_at_once() -> None:
    alive: dict[str, str] = {}
    with opened() as client:

        def work(name: int) -> None:
            draws = random.Random(name)
            mine: list[str] = []
            for number in range(25):
                kind = draws.choice(["add", "add", "add", "search", "erase", "budget", "blocks", "status"])
                if kind == "add":
                    mine.append(client.add(f"note {name} {number}").id)
                    alive[mine[-1]] = f"note {name} {number}"
                elif kind == "search":
                    client.search(f"note {name}", k=5)
                elif kind == "erase" and mine:
                    # Another thread may have changed the vault since the plan: planned again, as the error says.
                    gone = mine.pop()
                    while True:
                        try:
                            client.erase.plan(record=[gone]).execute()
                            break
                        except FedmemError as error:
                            assert "Plan again" in str(error), error  # noqa: PT017
                    del alive[gone]
                elif kind == "budget":
                    client.privacy.budget()
                elif kind == "blocks":
                    client.blocks.list()
                else:
                    client.erase.status()

        assert together(*(lambda name=name: work(name) for name in range(6))) == [None] * 6
    with opened() as client:
        assert {hit.id: hit.text for hit in client.search("x", k=10_000)} == alive
        assert {one.state for one in client.erase.status()} <= {"completed"}
