"""The privacy report: a `Statement` as one HTML page, for print and for a reader who will question it.

Invariants
- A pure function of the statement; the page loads nothing and every value is escaped, see `fedmem.pages`.
- A spent ε is rounded up and what is left of a budget down, so that no figure shown is better than the one computed.
- It names topics, as `privacy budget` does for who holds the keys, and says that it is a copy outside the vault.

    | value | shown as |
    |---|---|
    | infinite ε | not bounded |
    | a topic above its budget, or without one | an alarm |

    html = page(client.privacy.report(policy.topics))
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fedmem.pages import Cell, rendered
from fedmem.privacy.statement import Spent, Statement, TopicSpent

STATES = {"lost": "unknown: a restored backup may lack spends"}
LEFT, WIDTH, ROW, NAME = 170, 420, 30, 22  # the chart: where bars begin, the longest one, a line's height in px
BEYOND = 1.5  # how far the chart reaches, in greatest budgets


@dataclass(frozen=True)
class Bar:
    """A line of the chart: `frame` and `filled` are the lengths of budget and spent ε, in px like `top`."""

    name: str
    top: int
    frame: float
    filled: float
    is_within: bool
    figures: str


def page(said: Statement) -> str:
    """The report as one HTML page."""
    best = said.epsilon_rdp if said.epsilon_pld is None else said.epsilon_pld
    exact = "not computed: dp-accounting is not installed" if said.epsilon_pld is None else up(said.epsilon_pld)
    vouched = "none; a cut at the end would show in the runs only" if said.noted is None else f"the first {said.noted}"
    return rendered(
        "privacy.html.j2",
        said=said,
        up=up,
        bound=f"ε = {up(best)}" if math.isfinite(best) else up(best),
        exact=exact,
        topics=[_topic(one) for one in said.topics],
        chart=chart(said.topics) if said.topics else "",
        runs=[_run(one) for one in said.runs],
        vouched=vouched,
    )


def up(epsilon: float) -> str:
    """A spent ε, rounded up to three digits after the point."""
    return f"{math.ceil(epsilon * 1000) / 1000:.3f}" if math.isfinite(epsilon) else "not bounded"


def down(left: float) -> str:
    """What is left of a budget, rounded down."""
    return f"{math.floor(left * 1000) / 1000:.3f}"


def chart(topics: Sequence[TopicSpent]) -> Markup:
    """Bars as SVG: ε spent of each topic, and its budget as the frame around it. A bar far beyond is cut."""
    greatest = max(one.budget or 0.0 for one in topics)
    scale = WIDTH / (BEYOND * greatest or 1.0)
    bars = [_bar(one, 5 + ROW * row, scale) for row, one in enumerate(topics)]
    size = {"width": LEFT + WIDTH + 140, "height": ROW * len(topics) + 10}
    return Markup(rendered("budgets.svg.j2", bars=bars, left=LEFT, **size))  # noqa: S704 -- our template, its values escaped


def _bar(one: TopicSpent, top: int, scale: float) -> Bar:
    name = one.topic if len(one.topic) <= NAME else one.topic[: NAME - 1] + "…"
    figures = f"{up(one.epsilon)}, no budget" if one.budget is None else f"{up(one.epsilon)} of {one.budget:g}"
    return Bar(name, top, (one.budget or 0.0) * scale, min(one.epsilon * scale, WIDTH), _is_within(one), figures)


def _is_within(one: TopicSpent) -> bool:
    return one.epsilon <= (one.budget or 0.0)


def _topic(one: TopicSpent) -> tuple[str, ...]:
    spent = Cell(up(one.epsilon), "" if _is_within(one) else "bad")
    budget = "none in the policy" if one.budget is None else f"{one.budget:g}"
    return one.topic, budget, f"{one.delta:g}", spent, down(one.left)


def _run(one: Spent) -> tuple[Any, ...]:
    terms = (f"{one.sampling_rate:g}", f"{one.noise_multiplier:.4g}", one.steps)
    state = STATES.get(one.state, one.state)
    return one.block, one.topic or "–", one.release[:12] or "–", *terms, up(one.epsilon), state
