"""README's performance table out of benchmarks/results/: `python -m benchmarks.table` writes it, `--check` compares.

Invariants
- Every figure in the table stands in a results file, with the machine and commit it was measured on.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS, README = ROOT / "benchmarks" / "results", ROOT / "README.md"
START, END = "<!-- performance: python -m benchmarks.table -->", "<!-- /performance -->"

ROWS = [
    ("step", "ratio.memory_over_plain", "training step with memory / without, equal tokens", "≤ 1.25"),
    ("decode", "ratio.memory_over_widened", "decoding with memory / plain model with the same widened FFN", "≥ 0.92"),
    ("decode", "ratio.materialised_over_widened", "decoding materialised / the same plain model", "≥ 0.99"),
    ("decode", "ratio.memory_over_anchor", "decoding with memory / the bare anchor", ""),
    ("fetch", "ratio.cold_over_raw_read", "cold fetch / raw reads of the same bytes, in time", "≤ 1.3"),
    ("fetch", "ratio.warm_over_memcpy", "warm fetch / memcpy of the same bytes, in time", "≤ 1.5"),
    ("fetch", "peak_rss_mb", "peak memory of it, MB", "< 500"),
    ("routing", "route_ms", "routing one query beyond its embedding, ms", "≤ 2"),
    ("claims", "gap_closed.cotrained", "gap in loss to a plain model of 2.6 × the size that memory closes", "≥ 0.9"),
    ("claims", "gap_closed.frozen", "the same with a frozen anchor", "≥ 0.55"),
    ("claims", "gap_closed.break_even_multiple", "size of the plain model that has the same loss, × ours", "≥ 4"),
    ("private_step", "ratio.fused_over_plain_r64", "DP-SGD step / plain step of a block, width 64", "≤ 1.10"),
    ("private_step", "ratio.fused_over_plain_r512", "the same, width 512", "≤ 1.25"),
    ("private_step", "ratio.peak_memory", "peak memory of the DP-SGD step / of the plain step", "≤ 1.05"),
    ("private_step", "ratio.noise_share", "noise, share of the DP-SGD step at width 64", "≤ 0.03"),
    (
        "private_utility",
        "share_of_gain.eps8",
        "share of the best gain that a block has at ε = 8",
        "≥ 0.75",
    ),
    ("private_utility", "share_of_gain.eps2", "the same at ε = 2", "≥ 0.5"),
    ("federation", "ratio.cpu_over_plain_loop", "CPU of a federated round / of a plain loop over devices", "≤ 1.05"),
    ("federation", "ratio.cpu_over_pfl", "the same / of pfl-research", ""),
    ("federation", "ratio.cpu_over_ray", "the same / of Flower on Ray", ""),
    ("federation", "rounds_per_s.10", "empty rounds a second, 10 devices, journal on", "≥ the next"),
    ("federation", "peers.pfl.rounds_per_s.10", "the same, pfl-research", ""),
    ("federation", "rounds_per_s.1000", "empty rounds a second, 1,000 devices, journal on", "≥ the next"),
    ("federation", "peers.pfl.rounds_per_s.1000", "the same, pfl-research", ""),
    ("federation", "memory.slope_kb_per_device", "peak memory of a further device, kB", "< 50"),
    ("federation", "pretrain.loss_over_central", "loss of federated / central pretraining at equal tokens", "≤ 1.02"),
    ("federation", "ratio.bytes_below_per_step", "times fewer bytes than gradients of each step", "≥ 100"),
    ("erase", "erase_ms_beside_fsync", "erasing one block, beside its syncs, ms", "< 100"),
    ("erase", "ratio.blocks_10000_over_100", "the same in a vault of 10,000 blocks / of 100", "≤ 1.3"),
    ("erase", "ratio.retrain_over_erase", "retraining the block / erasing it", "≥ 1,000"),
    ("erase", "open_verify_attach_ms", "opening, verifying and attaching a block of 768 KiB, ms", "< 5"),
    ("erase", "residue.fedmem", "notes of 50 found in files after their deletion, fedmem", "0"),
    ("erase", "residue.sqlite_wal", "the same, plain SQLite in WAL mode", ""),
]


def figure(data: dict[str, Any], name: str) -> str:
    """Return a figure by its dotted name, with its interval if it has one."""
    value: Any = data
    for part in name.split("."):
        value = value[part]
    interval = data.get("interval", {}).get(name)
    return f"{value:.3g}" + (f" ({interval[0]:.3g} to {interval[1]:.3g})" if interval else "")


def table(results: Path = RESULTS) -> str:
    """Return the table in Markdown; benchmarks without kept results are left out."""
    lines = ["| what | aim | found | at |", "|---|---|---|---|"]
    for name, key, what, aim in ROWS:
        path = results / f"{name}.json"
        if path.exists():
            data = json.loads(path.read_text(encoding="utf-8"))
            machine = data["machine"]
            lines.append(f"| {what} | {aim} | {figure(data, key)} | {machine['cpu']}, {machine['commit']} |")
    return "\n".join(lines)


def filled(text: str, content: str) -> str:
    """Return `text` with `content` between the marks. Raise ValueError if a mark is missing."""
    before, rest = text.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{content}\n{END}{after}"


def main() -> None:
    """Write the table into README, or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 6 where README does not hold the table")
    old = README.read_text(encoding="utf-8")
    new = filled(old, table())
    if parser.parse_args().check:
        sys.exit(0 if new == old else 6)
    README.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
