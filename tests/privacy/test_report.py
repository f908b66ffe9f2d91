"""The privacy report: figures from their definition, every value escaped, nothing loaded from elsewhere."""

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from typing import Any

import pytest

from fedmem.policy.files import Topic
from fedmem.privacy.accounting import epsilon_pld, epsilon_rdp
from fedmem.privacy.report import chart, down, page, up
from fedmem.privacy.spend import SpendEvent
from fedmem.privacy.statement import (
    NOT_COVERED,
    PUBLIC,
    LifetimeSpent,
    Spent,
    Statement,
    TopicSpent,
    greatest_readded_epsilon,
    readded_epsilon,
    runs_spent,
    topics_spent,
)

DELTA = 1e-5
HEALTH, NOTES = Topic("health", 8.0, 1e-5), Topic("notes", 2.0, 1e-6)
LOW, HIGH = SpendEvent(0.05, 3.0, 30), SpendEvent(1.0, 4.0, 4)
SVG = re.compile(r"<svg.*</svg>", re.DOTALL)


@dataclass
class Event:
    kind: str
    payload: dict[str, Any] = field(default_factory=dict)


def spent(run: str, records: list[str] | None, spend: SpendEvent = LOW, release: str = "r" * 64) -> Event:
    payload = {"run": run, "block": f"block-{run}", "release": release, "records": records, "spend": spend.to_dict()}
    return Event("spend", payload)


EVENTS = [
    spent("1", ["a", "b"]),
    Event("run_finished", {"run": "1", "block": "block-1"}),
    spent("2", ["b", "n"], HIGH),
    Event("run_failed", {"run": "2"}),
]
RUN = Spent("run-1", "block-1", "health", 1.23456, "abcdef" * 10, 0.15, 1.23456, 40, "finished", DELTA)
PLAIN = Statement(
    vault="5e" * 16,
    simulated=False,
    delta=DELTA,
    epsilon_pld=1.23456,
    epsilon_rdp=1.5,
    epsilon_readded=2.71828,
    topics=[TopicSpent("health", 8.0, DELTA, 1.23456, 6.76544, 2.5), TopicSpent("notes", 2.0, DELTA, 0.0, 2.0, 0.0)],
    runs=[RUN],
    lifetime=LifetimeSpent(3.14159, DELTA, 10.0, 6.85841, 2, "zero-out"),
    events=2,
    head="ab" * 32,
    noted=2,
)


def test_runs_stand_with_their_own_figure() -> None:
    one, two = runs_spent(EVENTS, {"1": "health"}, {"1": 1e-7}, epsilon_pld)
    assert (one.run, one.block, one.topic, one.state, one.release) == ("1", "block-1", "health", "finished", "r" * 64)
    assert (one.sampling_rate, one.noise_multiplier, one.steps) == (0.05, 3.0, 30)
    assert (two.topic, two.state) == (None, "failed")
    assert [one.epsilon, two.epsilon] == [epsilon_pld([LOW], 1e-7), epsilon_pld([HIGH], DELTA)]
    assert [one.delta, two.delta] == [1e-7, DELTA]


def test_a_topic_stands_with_its_most_used_record_at_its_own_delta() -> None:
    holds = {"health": ["a", "b"], "notes": ["n"], "old": ["a"], "empty": []}
    budgets = {"health": HEALTH, "notes": NOTES, "empty": replace(NOTES, name="empty")}
    found = topics_spent(EVENTS, budgets, {"1": "old", "2": "health"}, holds.__getitem__, epsilon_pld)
    assert [one.topic for one in found] == ["health", "notes", "empty", "old"]
    health, notes, empty, old = found
    assert health.epsilon == epsilon_pld([LOW, HIGH], DELTA)
    assert health.left == 8.0 - health.epsilon > 0
    assert (notes.epsilon, notes.delta) == (epsilon_pld([HIGH], 1e-6), 1e-6)
    assert (notes.budget, notes.left) == (2.0, 0.0)  # more than its budget, never less than nothing left
    assert (empty.epsilon, empty.left) == (0.0, 2.0)
    assert (old.budget, old.epsilon, old.left) == (None, epsilon_pld([LOW], DELTA), 0.0)
    loose = topics_spent(EVENTS, budgets, {}, holds.__getitem__, epsilon_rdp)
    assert all(rdp.epsilon >= pld.epsilon for rdp, pld in zip(loose, found[:3], strict=True))


def test_spends_that_a_backup_may_lack_leave_nothing_of_any_topic() -> None:
    lost = [*EVENTS, spent("3", None, SpendEvent(1.0, 0.0, 1), release="")]
    assert runs_spent(lost, {}, {}, epsilon_pld)[-1].state == "lost"
    (health,) = topics_spent(lost, {"health": HEALTH}, {}, lambda _: ["a"], epsilon_pld)
    assert (health.epsilon, health.left) == (math.inf, 0.0)


def test_a_text_that_was_added_again_composes_all_trainings_of_its_topic() -> None:
    again = [spent(str(run), [f"record-{run}"], HIGH) for run in range(5)]  # each time a new record
    known = {"0": "health", "1": "health", "2": "notes"}  # an erasure took the topic of 3 and 4 away
    (health,) = topics_spent(again, {"health": HEALTH}, known, lambda name: ["record-0"], epsilon_pld)[:1]
    assert health.epsilon == epsilon_pld([HIGH], DELTA)
    assert health.epsilon_readded == epsilon_pld([HIGH] * 4, DELTA)
    assert greatest_readded_epsilon(again, known, DELTA, epsilon_pld) == epsilon_pld([HIGH] * 4, DELTA)
    assert greatest_readded_epsilon(again, {}, DELTA, epsilon_pld) == epsilon_pld([HIGH] * 5, DELTA)
    assert greatest_readded_epsilon([], {}, DELTA, epsilon_pld) == 0.0


def test_the_figure_of_a_text_added_again_is_never_below_that_of_a_record() -> None:
    moved = [spent("1", ["a"]), spent("2", ["a"]), spent("3", None), spent("4", ["b"])]
    known = {"1": "health", "2": "notes", "3": "notes", "4": "notes"}
    assert readded_epsilon(moved, known, "health", ["a"], DELTA, epsilon_pld) == epsilon_pld([LOW] * 3, DELTA)
    assert readded_epsilon(moved, known, "health", [], DELTA, epsilon_pld) == epsilon_pld([LOW] * 2, DELTA)
    apart = {"1": "health", "2": "notes"}
    assert greatest_readded_epsilon(moved[:2], apart, DELTA, epsilon_pld) == epsilon_pld([LOW] * 2, DELTA)


@pytest.mark.parametrize(("value", "spent", "left"), [(1.2341, "1.235", "1.234"), (2.0, "2.000", "2.000")])
def test_rounding_never_flatters(value: float, spent: str, left: str) -> None:
    assert (up(value), down(value)) == (spent, left)
    assert up(math.inf) == "not bounded"


def shown(said: Statement) -> str:
    """The text of a page as a person reads it, in one line."""
    parts: list[str] = []
    parser = HTMLParser(convert_charrefs=True)
    parser.handle_data = parts.append  # type: ignore[method-assign]
    parser.feed(page(said))
    return " ".join(" ".join(parts).split())


def test_the_page_states_the_terms_the_figures_and_what_they_leave_out() -> None:
    said = shown(PLAIN)
    for text in ("one record: a document", "add or remove one record", "1e-05", "ε = 1.235", "1.500", *PUBLIC):
        assert text in said
    for text in NOT_COVERED:
        assert text in said
    for text in ("block-1", "health", "abcdefabcdef ", "0.15", "1.235", "40", "finished", "ab" * 32, "the first 2"):
        assert text in said
    assert "6.765" in said  # what is left, rounded down
    for text in ("added again is a new record", "ε = 2.719", "2.500", "lifetime ε 3.142", "left 6.858", "zero-out"):
        assert text in said
    assert "made by a simulation" not in said
    assert 'class="bad"' not in page(PLAIN)


def test_what_is_alarming_is_an_alarm() -> None:
    over = TopicSpent("health", 8.0, DELTA, math.inf, 0.0, math.inf)
    alone = TopicSpent("old", None, DELTA, 1.0, 0.0, 1.0)
    said = replace(PLAIN, simulated=True, epsilon_pld=math.inf, epsilon_rdp=math.inf, topics=[over, alone], noted=None)
    text = shown(replace(said, runs=[replace(RUN, epsilon=math.inf, state="lost", topic=None, release="")]))
    for sentence in ("protects nobody", "spent more than: not bounded", "none in the policy", "may lack spends"):
        assert sentence in text
    assert "a cut at the end would show in the runs only" in text
    assert page(said).count('class="bad"') == 3


def test_without_the_exact_accountant_the_bound_stands_alone() -> None:
    said = shown(replace(PLAIN, epsilon_pld=None))
    assert "dp-accounting is not installed" in said
    assert "spent more than: ε = 1.500" in said


def test_an_empty_ledger() -> None:
    said = shown(replace(PLAIN, topics=[], runs=[], events=0, head="", noted=None, epsilon_pld=0.0, epsilon_rdp=0.0))
    for sentence in ("ε = 0.000", "No topic is known", "nothing was ever spent", "none yet"):
        assert sentence in said


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\u202e&"


def test_every_value_is_escaped_and_nothing_is_loaded() -> None:
    run = replace(RUN, block=HOSTILE, topic=HOSTILE, release=HOSTILE)
    said = replace(
        PLAIN, vault=HOSTILE, head=HOSTILE, runs=[run], topics=[TopicSpent(HOSTILE, 8.0, 1e-5, 1.0, 7.0, 1.0)]
    )
    made = page(said)
    tags: set[str] = set()
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, _: tags.add(tag)  # type: ignore[method-assign]
    parser.feed(made)
    assert not tags & {"script", "img", "link", "iframe", "a", "form", "object"}
    assert "\u202e" not in made
    assert not re.search(r"\b(src|href|on\w+)=\"?", made.replace("onerror=alert", "").replace("src=x", ""))
    assert "http" not in made.replace("http-equiv", "")
    assert "default-src 'none'" in made
    assert made == page(said)


def bars(made: str) -> list[tuple[float, float, str]]:
    """(frame, filled, colour) of each bar, read from the SVG."""
    rects = [one.attrib for one in ET.fromstring(made).iter("rect")]
    pairs = zip(rects[::2], rects[1::2], strict=True)
    return [(float(frame["width"]), float(bar["width"]), bar["fill"]) for frame, bar in pairs]


def test_bars_are_as_long_as_their_figures() -> None:
    lines = [(8.0, 4.0), (8.0, 0.0), (4.0, 5.0), (8.0, math.inf), (None, 2.0)]
    made = chart([TopicSpent(f"t{i}", budget, DELTA, spent, 0.0, spent) for i, (budget, spent) in enumerate(lines)])
    unit = bars(made)[0][0] / 8
    fine, over = bars(made)[0][2], bars(made)[2][2]
    assert fine != over
    assert [(round(frame / unit), round(bar / unit)) for frame, bar, _ in bars(made)[:3]] == [(8, 4), (8, 0), (4, 5)]
    assert [colour for _, _, colour in bars(made)] == [fine, fine, over, over, over]
    width = float(ET.fromstring(made).attrib["width"])
    assert all(bar < width for _, bar, _ in bars(made))
    assert "not bounded" in made
    assert chart([TopicSpent("alone", None, DELTA, 3.0, 0.0, 3.0)])


def test_the_chart_stands_in_the_page() -> None:
    found = SVG.search(page(PLAIN))
    assert found is not None
    assert "1.235 of 8" in found.group()
