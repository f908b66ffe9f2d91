"""Render a `Statement` as the privacy report: one HTML page, for print and for critical readers.

Invariants
- The page is a pure function of the statement. It loads nothing, and every value is escaped, see `fedmem.pages`.
- A spent ε is rounded up and the rest of a budget is rounded down. So no figure shown is better than the computed one.
- The page names topics, as `privacy budget` does for the holder of the keys. It says that it is a copy outside the
  vault.

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
from fedmem.privacy.statement import LifetimeSpent, Spent, Statement, TopicSpent

STATES = {"lost": "unknown: a restored backup may lack spends"}
LEFT, WIDTH, ROW, NAME = 170, 420, 30, 22  # the chart: start of bars, longest bar, row height (px); longest name
BEYOND = 1.5  # the chart ends at this multiple of the greatest budget


@dataclass(frozen=True)
class Bar:
    """A bar of the chart, in px.

    Attributes:
        name: name of the topic.
        top: distance from the top of the chart.
        frame: length of the budget.
        filled: length of the spent ε.
        is_within: True if the spent ε is within the budget.
        figures: text behind the bar.
    """

    name: str
    top: int
    frame: float
    filled: float
    is_within: bool
    figures: str


def page(statement: Statement) -> str:
    """Return the report as one HTML page.

    Args:
        statement: the content of the report.
    """
    best = statement.epsilon_rdp if statement.epsilon_pld is None else statement.epsilon_pld
    pld = statement.epsilon_pld
    noted = statement.noted
    return rendered(
        "privacy.html.j2",
        statement=statement,
        up=up,
        bound=_bound(best),
        readded=_bound(statement.epsilon_readded),
        exact="not computed: dp-accounting is not installed" if pld is None else up(pld),
        federations=lifetime_rows(statement.lifetime),
        topics=[_topic_row(topic) for topic in statement.topics],
        chart=chart(statement.topics) if statement.topics else "",
        runs=[_run_row(run) for run in statement.runs],
        vouched="none; a cut at the end would show in the runs only" if noted is None else f"the first {noted}",
    )


def up(epsilon: float) -> str:
    """Return a spent ε, rounded up to three decimals; "not bounded" if it is not finite.

    Args:
        epsilon: a spent ε.
    """
    return f"{math.ceil(epsilon * 1000) / 1000:.3f}" if math.isfinite(epsilon) else "not bounded"


def _bound(epsilon: float) -> str:
    return f"ε = {up(epsilon)}" if math.isfinite(epsilon) else up(epsilon)


def down(left: float) -> str:
    """Return the rest of a budget, rounded down to three decimals.

    Args:
        left: the rest of a budget, at least 0 and finite.
    """
    return f"{math.floor(left * 1000) / 1000:.3f}"


def lifetime_rows(account: LifetimeSpent) -> list[tuple[str, str]]:
    """Return the account of the device over all its federations as names and values.

    Args:
        account: the account of the device.
    """
    return [
        ("federations", str(account.federations)),
        ("lifetime ε", up(account.epsilon)),
        ("δ", f"{account.delta:g}"),
        ("budget ε", f"{account.budget:g}"),
        ("left", down(account.left)),
        ("neighbours", account.adjacency),
    ]


def chart(topics: Sequence[TopicSpent]) -> Markup:
    """Return bars as SVG: for each topic the spent ε, and its budget as a frame. A bar beyond the chart is cut.

    Args:
        topics: the topics, at least one.
    """
    greatest = max(topic.budget or 0.0 for topic in topics)
    scale = WIDTH / (BEYOND * greatest or 1.0)
    bars = [_bar(topic, 5 + ROW * row, scale) for row, topic in enumerate(topics)]
    size = {"width": LEFT + WIDTH + 140, "height": ROW * len(topics) + 10}
    return Markup(rendered("budgets.svg.j2", bars=bars, left=LEFT, **size))  # noqa: S704 -- our template, its values escaped


def _bar(topic: TopicSpent, top: int, scale: float) -> Bar:
    name = topic.topic if len(topic.topic) <= NAME else topic.topic[: NAME - 1] + "…"
    figures = f"{up(topic.epsilon)}, no budget" if topic.budget is None else f"{up(topic.epsilon)} of {topic.budget:g}"
    frame, filled = (topic.budget or 0.0) * scale, min(topic.epsilon * scale, WIDTH)
    return Bar(name, top, frame, filled, _is_within_budget(topic), figures)


def _is_within_budget(topic: TopicSpent) -> bool:
    return topic.epsilon <= (topic.budget or 0.0)


def _topic_row(topic: TopicSpent) -> tuple[str, ...]:
    spent = Cell(up(topic.epsilon), "" if _is_within_budget(topic) else "bad")
    budget = "none in the policy" if topic.budget is None else f"{topic.budget:g}"
    return topic.topic, budget, f"{topic.delta:g}", spent, down(topic.left), up(topic.epsilon_readded)


def _run_row(run: Spent) -> tuple[Any, ...]:
    terms = (f"{run.sampling_rate:g}", f"{run.noise_multiplier:.4g}", run.steps)
    state = STATES.get(run.state, run.state)
    return run.block, run.topic or "–", run.release[:12] or "–", *terms, up(run.epsilon), f"{run.delta:g}", state
