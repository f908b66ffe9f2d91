"""The privacy report: a `Statement` as one HTML page, for print and for a reader who will question it.

Invariants
- A pure function of the statement; the page loads nothing and every value is escaped, see `markup`.
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

from fedmem.markup import Bad, document, folded, lines, pairs, plain, section, table, text
from fedmem.privacy.statement import Spent, Statement, TopicSpent

STATES = {"lost": "unknown: a restored backup may lack spends"}
LEFT, WIDTH, ROW, NAME = 170, 420, 30, 22  # the chart: where bars begin, the longest one, a line's height in px
BEYOND = 1.5  # how far the chart reaches, in greatest budgets


def page(said: Statement) -> str:
    """The report as one HTML page."""
    parts = [
        *_head(said),
        *_subject(said),
        *section("Topics and their budgets", *_topics(said.topics)),
        *section("Every training run that was charged", _runs(said.runs)),
        *section("What is taken as public", lines(said.public)),
        *section("What no figure here covers", lines(said.not_covered)),
        *section("The ledger", _ledger(said)),
    ]
    return document(f"Privacy report {said.vault}", parts)


def up(epsilon: float) -> str:
    """A spent ε, rounded up to three digits after the point."""
    return f"{math.ceil(epsilon * 1000) / 1000:.3f}" if math.isfinite(epsilon) else "not bounded"


def down(left: float) -> str:
    """What is left of a budget, rounded down."""
    return f"{math.floor(left * 1000) / 1000:.3f}"


def _head(said: Statement) -> list[str]:
    seeded = (
        '<p class="bad">This vault was made by a simulation: its noise follows from a seed and protects nobody.</p>'
    )
    return [
        "<h1>Privacy report</h1>",
        *([seeded] if said.simulated else []),
        "<p>Computed from the vault's ledger when the page was made. The page names topics and is a copy outside the "
        "vault: keep it like what it is about, for an erasure does not reach it.</p>",
        pairs(
            [
                ("Vault", said.vault),
                ("Protected unit", said.unit),
                ("Neighbouring data", said.adjacency),
                ("δ", f"{said.delta:g}"),
                ("Mechanism", said.mechanism),
            ]
        ),
    ]


def _subject(said: Statement) -> list[str]:
    best = said.epsilon_rdp if said.epsilon_pld is None else said.epsilon_pld
    exact = "not computed: dp-accounting is not installed" if said.epsilon_pld is None else up(said.epsilon_pld)
    bound = f"ε = {up(best)}" if math.isfinite(best) else up(best)
    return section(
        "What was spent",
        f"<p>No record of the subject, present or erased, has spent more than: <strong>{text(bound)}</strong>.</p>",
        pairs(
            [
                ("By privacy loss distributions (PLD)", exact),
                ("By Rényi DP (RDP), the gate of every step", up(said.epsilon_rdp)),
            ]
        ),
        "<p>Both are upper bounds; RDP is the looser one. Composed for each record are all runs that it was ever in, "
        "failed and erased ones included, and all runs of which it is no longer known whom they used.</p>",
    )


def _topics(topics: Sequence[TopicSpent]) -> list[str]:
    if not topics:
        return ["<p>No topic is known.</p>"]
    rows = [
        (one.topic, "none in the policy" if one.budget is None else f"{one.budget:g}", f"{one.delta:g}", _spent(one),
         down(one.left))
        for one in topics
    ]  # fmt: skip
    return [
        chart(topics),
        table(("Topic", "Budget ε", "at δ", "Spent ε", "Left"), rows),
        "<p>Spent is that of the most used record that the topic holds now, over all topics that it was ever in. A run "
        "is composed with it before it starts, and is refused where the whole would pass the budget.</p>",
    ]


def _spent(one: TopicSpent) -> str:
    return up(one.epsilon) if _within(one) else Bad(up(one.epsilon))


def _within(one: TopicSpent) -> bool:
    return one.epsilon <= (one.budget or 0.0)


def chart(topics: Sequence[TopicSpent]) -> str:
    """Bars as SVG: ε spent of each topic, and its budget as the frame around it. A bar far beyond is cut."""
    greatest = max(one.budget or 0.0 for one in topics)
    scale = WIDTH / (BEYOND * greatest or 1.0)
    bars = "\n".join(_bar(one, 5 + ROW * row, scale) for row, one in enumerate(topics))
    width, height = LEFT + WIDTH + 140, ROW * len(topics) + 10
    return (
        f'<svg role="img" aria-label="ε spent of each topic against its budget" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-size="13">\n{bars}\n</svg>'
    )


def _bar(one: TopicSpent, top: int, scale: float) -> str:
    within, budget = _within(one), one.budget or 0.0
    frame, filled = budget * scale, min(one.epsilon * scale, WIDTH)
    name = plain(one.topic) if len(one.topic) <= NAME else plain(one.topic)[: NAME - 1] + "…"
    said = f"{up(one.epsilon)} of {budget:g}" if one.budget is not None else f"{up(one.epsilon)}, no budget"
    fill, after = ("#2f6690" if within else "#a00000"), LEFT + max(frame, filled) + 8
    return (
        f'<text x="0" y="{top + 16}">{text(name)}</text>'
        f'<rect x="{LEFT}" y="{top}" width="{frame:.1f}" height="20" fill="#e8edf1" stroke="#7d8b96"/>'
        f'<rect x="{LEFT}" y="{top + 4}" width="{filled:.1f}" height="12" fill="{fill}"/>'
        f'<text x="{after:.1f}" y="{top + 15}">{text(said)}</text>'
    )


def _runs(runs: Sequence[Spent]) -> str:
    if not runs:
        return "<p>None: nothing was ever spent.</p>"
    columns = ("Block", "Topic", "Release", "Rate", "σ", "Steps", "ε alone", "State")
    rows = [
        (one.block, one.topic or "–", one.release[:12] or "–", f"{one.sampling_rate:g}", f"{one.noise_multiplier:.4g}",
         one.steps, up(one.epsilon), STATES.get(one.state, one.state))
        for one in runs
    ]  # fmt: skip
    return folded(f"{len(runs)} in all, oldest first", table(columns, rows), len(runs))


def _ledger(said: Statement) -> str:
    vouched = "none; a cut at the end would show in the runs only" if said.noted is None else f"the first {said.noted}"
    return pairs(
        [
            ("Events", str(said.events)),
            ("Digest of the last one", said.head or "none yet"),
            ("Events that the keystore vouches for", vouched),
        ]
    )
