"""The content of `run.json` of a finished run, for the tests of comparisons."""

from collections.abc import Callable
from typing import Any

Put = Callable[..., str]
SECRET = "zebrafinch-4711"
REASON = "unsafe_no_dp = true: three are too few to hide in"


def run_json(seed: int = 7) -> dict[str, Any]:
    """A finished run with everything that a comparison shows."""
    points = [
        ("pretrain", 6, 6.0),
        ("pretrain", 12, 5.8),
        ("cotrain", 5, 5.7),
        ("rounds_1", 2, 5.6),
        ("rounds_2", 4, 5.5),
    ]
    return {
        "name": "an old name",
        "scenario": "mini",
        "seed": seed,
        "state": "completed",
        "corpus": "generated",
        "config": {
            "name": "mini",
            "about": "small",
            "seed": 1,
            "public": {"devices": 4, "documents": 300},
            "anchor": {"preset": "nano", "vocabulary": 512, "length": 10},
            "pretrain": {"steps": 12, "batch": 4},
            "cotrain": {"steps": 6, "batch": 4},
            "federation": {"rounds": 2, "steps": 3, "batch": 2, "sampling_rate": 0.5},
            "private": [{"topic": "notes", "devices": [0], "records": 40}],
        },
        "attribution": ["Leads of an encyclopedia"],
        "parameters": 139584,
        "loss": {
            "public": {"anchor": 5.0, "fetched": 4.5},
            "rounds": {"before": 4.75, "after": 4.5},
            "private": {"without": 6.0, "with": 5.0, "after_erasure": None},
            "private_blocks": [],
            "by_phase": [{"phase": p, "step": s, "loss": x, "split": "heldout"} for p, s, x in points],
        },
        "epsilon": {
            "device": None,
            "device_reason": REASON,
            "device_delta": 1e-5,
            "coordinator": None,
            "coordinator_reason": "infinite: it sees each update",
            "blocks_max": 7.5,
            "blocks": [{"device": "device-0", "topic": SECRET}],
        },
        "bytes": {"per_device_round": 900, "rounds": [{"round": n, "up": 800, "down": 200} for n in (1, 2, 3, 4)]},
        "erasure": {"receipt": f"/home/{SECRET}/r.json"},
        "placement": {"private": 4711},
        "digest": f"{seed:02d}" * 32,
        "peak_rss_mb": 812.5,
        "seconds": {"total": 10.0},
    }
