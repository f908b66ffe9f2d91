"""The report: complete, offline, escaped, and the same for the same run."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fedmem.sim.report import render_page, write_report

EVIL = '<script>alert("x")</script>-->$a$&'
TITLES = (
    "Loss by phase",
    "Gain by cluster frequency",
    "ε per block",
    "Bytes per round",
    "Public text",
    "Private text",
    "Privacy budget spent",
    "Erasure of one private block",
    "Residue scan",
    "Placement by the policy",
    "Releases",
    "Time by phase",
    "Sources of the text",
)


def quickstart() -> dict[str, Any]:
    """A small run with everything in it."""
    blocks = [
        {"device": f"device-{i}", "block": f"b{i}", "topic": "health", "epsilon": 4.0 + i, "delta": 1e-5}
        for i in range(2)
    ]
    steps = [("pretrain", "heldout", 20), ("cotrain", "heldout", 20), ("private", "private", 3)]
    return {
        "name": "quickstart-0001",
        "scenario": "quickstart",
        "seed": 7,
        "state": "completed",
        "config": {"devices": 8},
        "attribution": ["Wikipedia leads, CC BY-SA 4.0"],
        "releases": ["9f3b" * 16, "a01c" * 16],
        "loss": {
            "public": {"anchor": 4.912, "generic": 4.731, "fetched": 4.604, "wrong": 4.950},
            "private": {"without": 5.218, "with": 3.904, "after_erasure": 5.218},
            "by_phase": [
                {"phase": p, "step": i, "loss": 6.0 - i / n, "split": split}
                for p, split, n in steps
                for i in range(1, n + 1)
            ],
            "by_frequency": [{"bucket": "1-4", "documents": 12, "anchor": 5.0, "fetched": 4.5, "gain": 0.5}],
            "private_blocks": [{"device": "device-0", "topic": "health", "without": 5.2, "with": 3.9}],
        },
        "epsilon": {
            "device": None,
            "device_reason": "unsafe_no_dp = true: too few to hide in",
            "blocks_max": 5.0,
            "blocks": blocks,
        },
        "bytes": {"per_device_round": 3_211_264, "rounds": [{"round": 1, "up": 25_690_112, "down": 25_690_112}]},
        "erasure": {
            "status": "completed",
            "receipt": "receipts/2f.json",
            "verified": True,
            "device": "device-0",
            "topic": "health",
        },
        "placement": {"agreement": 0.987, "shared": 9120, "private": 2310},
        "residue": {"before": 0, "after": 0},
        "digest": "c0de" * 16,
        "peak_rss_mb": 1834.2,
        "seconds": {"total": 412.3, "prepare": 21.1, "pretrain": 391.2},
    }


class Loads(HTMLParser):
    """Everything on a page that a browser would fetch, and every id."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect addresses, ids and scripts."""
        values = dict(attrs)
        self.found += [
            str(values[key]) for key in ("src", "href", "srcset", "data", "action", "poster") if key in values
        ]
        self.ids += [str(values["id"])] if "id" in values else []
        if tag in ("script", "link", "iframe", "object", "embed", "base"):
            self.found.append(tag)


def loads(html: str) -> Loads:
    parser = Loads()
    parser.feed(html)
    return parser


def test_everything_is_shown(tmp_path: Path) -> None:
    write_report(quickstart(), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text("utf-8")
    for title in TITLES:
        assert f">{title}<" in html
    assert html.count('<svg role="img"') == 4
    for figure in (
        "4.604",
        "3.904",
        "to the last bit",
        "3.2 MB",
        "6 min 52 s",
        "receipts/2f.json",
        "98.7%",
        "CC BY-SA 4.0",
        "c0de" * 16,
    ):
        assert figure in html
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_page_loads_nothing() -> None:
    html = render_page(quickstart())
    assert [address for address in loads(html).found if not address.startswith("#")] == []
    assert re.findall(r"url\((?!#)|@import|https?:", html) == []
    assert "default-src 'none'" in html


def test_loads_are_found_when_there_are_any() -> None:
    assert loads('<img src="https://x.example/a.png"><script></script>').found == ["https://x.example/a.png", "script"]


def test_ids_are_unique_and_references_resolve() -> None:
    parser = loads(render_page(quickstart()))
    assert len(parser.ids) == len(set(parser.ids))
    assert {address[1:] for address in parser.found} <= set(parser.ids)


def test_markup_is_escaped_wherever_it_stands() -> None:
    run = quickstart()
    run |= {
        "name": EVIL,
        "scenario": EVIL,
        "attribution": [EVIL],
        "config": {"note": EVIL},
        "releases": [EVIL],
        "digest": EVIL,
    }
    run["epsilon"]["device_reason"] = f"unsafe_no_dp = true: {EVIL}"
    run["epsilon"]["blocks"][0] |= {"device": EVIL, "topic": EVIL}
    run["loss"]["private_blocks"][0]["topic"] = EVIL
    run["loss"]["by_phase"][0] |= {"phase": EVIL, "split": EVIL}
    run["loss"]["by_frequency"][0]["bucket"] = EVIL
    run["erasure"] |= {"topic": EVIL, "receipt": EVIL}
    run["seconds"][EVIL] = 1.0
    html = render_page(run)
    assert "<script" not in html
    assert "alert" in html


def test_banner_repeats_the_reason_and_only_then() -> None:
    run = quickstart()
    banner = render_page(run).split('class="banner"')[1].split("</p>")[0]
    assert "unsafe_no_dp = true" in banner
    assert "too few to hide in" in banner
    run["epsilon"] |= {"device": 7.3, "device_reason": "16 rounds, 300 devices a round"}
    assert 'class="banner"' not in render_page(run)
    assert "7.30" in render_page(run)


@pytest.mark.parametrize("missing", [None, {}])
def test_what_a_run_lacks_is_left_out(missing: Any) -> None:
    run = quickstart() | {"erasure": missing, "residue": missing}
    run["loss"] |= {"private": missing, "private_blocks": []}
    run["epsilon"] = {"device": 7.3, "device_reason": "", "blocks_max": None, "blocks": []}
    html = render_page(run)
    for title in ("Private text", "ε per block", "Erasure of one private block", "Residue scan", "Private loss"):
        assert title not in html
    assert ">Public text<" in html


def test_an_empty_run_is_a_page() -> None:
    assert "<h1>run</h1>" in render_page({})


def test_odd_numbers_do_not_stop_it() -> None:
    run = quickstart()
    run["loss"]["public"]["wrong"] = float("nan")
    run["epsilon"]["blocks"][0]["epsilon"] = float("inf")
    assert "∞" in render_page(run)


def test_unequal_after_erasure_and_residue_are_said() -> None:
    run = quickstart()
    run["loss"]["private"]["after_erasure"] = 5.2180001
    run["residue"]["after"] = 3
    run["erasure"] |= {"status": "partial", "verified": False}
    html = render_page(run)
    assert "differs from" in html
    assert html.count('class="bad"') + html.count('class="number bad"') == 4  # wrong blocks, state, receipt, residue


def test_same_run_same_bytes() -> None:
    assert render_page(quickstart()) == render_page(quickstart())
