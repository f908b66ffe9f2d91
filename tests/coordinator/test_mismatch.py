"""Devices that cannot take part are named; one peer alone decides nothing."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fedmem.coordinator.journal import Journal
from fedmem.coordinator.mismatch import ENOUGH, MismatchCheck, ReplyOutcome
from fedmem.coordinator.run_rounds import run_rounds
from fedmem.errors import VersionMismatch
from fedmem.federation import flower_codec as records
from fedmem.federation.client_app import answer_request
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.flower import Array, ArrayRecord, ClientApp, Context, Message, RecordDict
from fedmem.federation.rounds import RoundAborted
from tests.federation.conftest import UNSAFE

MOVES, ZEROS, PROTOCOL, RELEASE = (
    ReplyOutcome.MOVES,
    ReplyOutcome.ZEROS,
    ReplyOutcome.OTHER_PROTOCOL,
    ReplyOutcome.OTHER_RELEASE,
)


def check(expects_updates: bool = True, noisy: bool = False) -> MismatchCheck:
    return MismatchCheck(expects_updates, noisy)


@pytest.mark.parametrize("outcome", [ZEROS, PROTOCOL, RELEASE])
def test_all_nodes_together_decide(outcome: ReplyOutcome) -> None:
    assert outcome.value.split()[-1] in str(check().judge({1: outcome, 2: outcome}, [1, 2]))


def test_a_silent_a_useful_or_a_lying_node_keeps_the_run_going() -> None:
    assert check().judge({1: ZEROS}, [1, 2]) is None
    assert check().judge({1: ZEROS, 2: MOVES}, [1, 2]) is None
    assert check().judge({1: ZEROS, 2: ReplyOutcome.REFUSED}, [1, 2]) is None
    assert check().judge({}, []) is None


def test_samples_add_up_and_one_useful_reply_starts_the_count_again() -> None:
    rounds = check()
    assert rounds.judge({1: ZEROS}, [1, 2, 3]) is None
    assert rounds.judge({2: MOVES}, [1, 2, 3]) is None
    assert rounds.judge({2: ZEROS}, [1, 2, 3]) is None
    assert rounds.judge({3: RELEASE}, [1, 2, 3]) is None
    assert rounds.judge({1: PROTOCOL}, [1, 2, 3]) is not None


def test_in_a_large_federation_a_number_of_nodes_is_enough() -> None:
    few, enough = dict.fromkeys(range(ENOUGH - 1), ZEROS), dict.fromkeys(range(ENOUGH), ZEROS)
    assert check().judge(few, range(1000)) is None
    assert check().judge(enough, range(1000)) is not None


def test_with_noise_zeros_are_logged_and_end_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert check(noisy=True).judge({1: ZEROS}, [1]) is None
    assert caplog.records
    assert check(noisy=True).judge({1: PROTOCOL}, [1]) is not None


def test_where_no_step_is_asked_for_zeros_are_right() -> None:
    assert check(expects_updates=False).judge({1: ZEROS}, [1]) is None
    assert check(expects_updates=False).judge({1: RELEASE}, [1]) is not None


def app(made: Any, changed: Callable[[RecordDict], RecordDict]) -> ClientApp:
    """The toy's app, whose replies pass through `changed`."""
    client = ClientApp()

    def train(message: Message, context: Context) -> Message:
        return Message(changed(answer_request(made.device, message.content, context)), reply_to=message)

    client.train("anchor")(train)
    return client


def old_protocol(content: RecordDict) -> RecordDict:
    arrays = content["update"].items()
    old = {name: Array(array.dtype, array.shape, "fedmem.raw.le/1", array.data) for name, array in arrays}
    return RecordDict({"update": ArrayRecord(old)})


def old_release(content: RecordDict) -> RecordDict:
    return RecordDict({"update": ArrayRecord({"theirs": Array("int32", (5,), records.STYPE, bytes(20))})})


@pytest.mark.parametrize(
    ("changed", "name"), [(old_protocol, "protocol"), (old_release, "release")], ids=["protocol", "release"]
)
def test_a_federation_of_another_version_ends_by_name(toy: Any, changed: Any, name: str) -> None:
    made = toy()
    with pytest.raises(VersionMismatch, match=f"another {name}") as ended:
        made.run(until=3, grid=made.grid(app(made, changed)))
    assert ended.value.exit_code == 9
    assert [(row.counted, row.aborted) for row in Journal(made.root).traffic()] == [(0, True)]


def test_a_federation_of_another_plan_ends_by_name_and_its_round_is_no_success(toy: Any) -> None:
    made, other = toy(), toy()
    other.plan = DevicePlan(population=4, rounds=8, **UNSAFE)  # type: ignore[arg-type]
    with pytest.raises(VersionMismatch, match="4 devices answered with zeros alone"):
        made.run(until=1, grid=other.grid())
    with pytest.raises(RoundAborted):
        made.run(until=1, grid=other.grid())


def test_one_device_of_the_right_plan_is_enough(toy: Any) -> None:
    made, other = toy(), toy()
    wrong = replace(made.plan, rounds=8)
    made.before = lambda index: setattr(made, "plan", wrong if index else other.plan)
    coordinator = other.coordinator()
    traffic = run_rounds(made.grid(), coordinator, Journal(made.root), until=2)
    assert [row.counted for row in traffic] == [4, 4]
