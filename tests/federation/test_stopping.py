import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmem.errors import UsageError
from fedmem.federation import apps
from fedmem.federation.journal import Journal
from fedmem.federation.stopping import EarlyStop, plateau
from tests.federation.test_journal import Killed, Power, state

LOSSES = {1: 3.0, 2: 2.0, 3: 2.5, 4: 2.0, 5: 1.0}


@pytest.mark.parametrize(
    ("losses", "stops"),
    [
        ([], False), ([3.0], False), ([3.0, 2.0], False), ([3.0, 3.0, 3.0], True), ([3.0, 3.0, 2.9], False),
        ([3.0, math.inf, math.inf], True), ([math.inf, math.inf, 2.0], False), ([1.0, 2.0, 0.5, 0.6], False),
    ],
)  # fmt: skip
def test_a_plateau_is_two_rounds_without_a_better_loss(losses: list[float], stops: bool) -> None:
    assert plateau(losses, EarlyStop(lambda params: 0.0, rounds=2)) == stops


def test_an_improvement_within_the_margin_is_none() -> None:
    assert plateau([3.0, 2.95, 2.91], EarlyStop(lambda params: 0.0, rounds=2, margin=0.1))


@pytest.mark.parametrize("bad", [{"rounds": 0}, {"rounds": 1, "margin": -1.0}, {"rounds": 1, "margin": math.nan}])
def test_a_rule_that_makes_no_sense_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        EarlyStop(lambda params: 0.0, **bad)


class Judge:
    """A public loss by round; told which parameters it saw."""

    def __init__(self, losses: dict[int, float]) -> None:
        self.losses, self.calls = losses, 0

    def rule(self, journal: Journal) -> EarlyStop:
        def loss(params: Any) -> float:
            self.calls += 1
            return self.losses[journal.done]

        return EarlyStop(loss, rounds=2)


def run(made: Any, judge: Judge) -> Journal:
    journal = Journal(made.root)
    apps.run_rounds(made.grid(), apps.resumed(journal, made.coordinator), journal, until=5, stop=judge.rule(journal))
    return journal


def test_a_run_stops_at_its_plateau_and_says_so_in_its_journal(toy: Callable[..., Any]) -> None:
    made, judge = toy(), Judge(LOSSES)
    journal = run(made, judge)
    assert journal.done == 4
    assert journal.losses() == {1: 3.0, 2: 2.0, 3: 2.5, 4: 2.0}
    assert journal.log.entries()[-1] == {"kind": "stop", "round": 4}
    # Called again, it neither goes on nor asks again.
    calls = judge.calls
    assert run(made, judge).done == 4
    assert judge.calls == calls == 4


def test_a_loss_that_is_no_number_is_no_improvement(toy: Callable[..., Any]) -> None:
    journal = run(toy(), Judge(dict.fromkeys(range(1, 6), math.nan)))
    assert journal.done == 3
    assert Journal(journal.root).losses() == {1: math.inf, 2: math.inf, 3: math.inf}


def test_a_run_killed_at_any_write_stops_at_the_same_round(
    toy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        power = Power(patch, at=0, when="before")
        whole = run(toy(), Judge(LOSSES))
    for at in range(1, power.writes + 1, 2):
        made = toy()
        with monkeypatch.context() as patch:
            Power(patch, at, "after")
            with pytest.raises(Killed):
                run(made, Judge(LOSSES))
        again = run(made, Judge(LOSSES))
        assert state(again) == state(whole)
        assert [e for e in again.log.entries() if e["kind"] in ("heldout", "stop")] == [
            e for e in whole.log.entries() if e["kind"] in ("heldout", "stop")
        ]
