"""The coordinator as deployed goes on from its journal, on any plan, and only under the terms that it began with."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import server.app
from fedmem.coordinator.journal import Journal
from fedmem.coordinator.run_rounds import run_rounds
from fedmem.errors import Refused, UsageError
from tests.federation.conftest import UNSAFE, toy_params
from tests.federation.nemesis import ledger_rounds

PLANS: dict[str, dict[str, Any]] = {"no noise": UNSAFE, "noise": {"noise_multiplier": 1.0, "sampling_rate": 0.7}}
TERMS = """
release = "abc"
parts = ["anchor"]
[plan]
population = 4
rounds = 9
{plan}
[rounds]
seed = 5
learning_rate = 0.1
[local]
length = 48
"""


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Start the deployed app with these terms; it gets the toy's parameters in place of a release."""
    monkeypatch.setattr(server.app, "load_federated_part", lambda *_: SimpleNamespace(params=toy_params))

    def call(plan: dict[str, Any], **config: Any) -> Any:
        values = "\n".join(
            f"{key} = {str(value).lower() if value is True else repr(value)}" for key, value in plan.items()
        )
        (tmp_path / "terms.toml").write_text(TERMS.format(plan=values))
        known = {"release": "r", "terms": str(tmp_path / "terms.toml"), "out": str(tmp_path / "out")}
        return server.app.start(SimpleNamespace(run_config={**known, "devices": 2, "rounds": 0, **config}))  # type: ignore[arg-type]

    return call


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_a_killed_coordinator_goes_on_from_its_journal(begin: Any, toy: Any, tmp_path: Path, plan: Any) -> None:
    made = toy(**({} if plan is UNSAFE else plan))
    coordinator, journal, until, _ = begin(plan)
    assert until == 9
    run_rounds(made.grid(), coordinator, journal, until=2)
    opened = coordinator.open([1000, 1001])  # the round that the kill interrupts: spent and not closed
    journal.record_open(opened.number)
    journal.record_spend(coordinator.spend())
    resumed, journal, _, _ = begin(plan)
    assert resumed.finished_rounds == 2
    assert all(np.array_equal(resumed.params[name], coordinator.params[name]) for name in resumed.params)
    run_rounds(made.grid(), resumed, journal, until=4)
    assert ledger_rounds(Journal(tmp_path / "out")) == [1, 2, 3, 4]


def test_the_noise_of_a_resumed_coordinator_is_new(begin: Any, toy: Any) -> None:
    plan = PLANS["noise"]
    one, _, _, _ = begin(plan)
    two, _, _, _ = begin(plan)
    first, second = (made._stream(1, "noise").words(8) for made in (one, two))
    assert not (first == second).any()


def test_a_journal_of_other_terms_is_refused(begin: Any) -> None:
    begin(PLANS["noise"])
    with pytest.raises(Refused, match="other terms"):
        begin({**PLANS["noise"], "noise_multiplier": 0.5})


def test_a_journal_that_names_no_terms_is_refused(begin: Any, toy: Any, tmp_path: Path) -> None:
    toy(root=tmp_path / "out").run(until=1)
    with pytest.raises(Refused, match="other terms"):
        begin(UNSAFE)


def test_a_run_config_that_names_no_folder_is_refused(begin: Any) -> None:
    with pytest.raises(UsageError, match="needs out"):
        begin(UNSAFE, out="")


@pytest.mark.parametrize("value", ["two", -1, 1.5, True])
@pytest.mark.parametrize("key", ["rounds", "devices"])
def test_a_run_config_without_whole_numbers_is_refused_and_writes_nothing(
    begin: Any, tmp_path: Path, key: str, value: Any
) -> None:
    with pytest.raises(UsageError, match=key):
        begin(UNSAFE, **{key: value})
    assert not (tmp_path / "out").exists()
