"""The privacy report: figures from their definition, every value escaped, nothing loaded from elsewhere."""

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from fedmem.privacy.report import chart, down, page, up
from fedmem.privacy.statement import (
    NOT_COVERED,
    PUBLIC,
    LifetimeSpent,
    Spent,
    Statement,
    TopicSpent,
)

DELTA = 1e-5
SVG = re.compile(r"<svg.*</svg>", re.DOTALL)


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
