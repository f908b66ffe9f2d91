"""`fedmem privacy audit`: what our training gives away, measured by attacking it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from fedmem.cli.output import emit, json_option, pairs, table

if TYPE_CHECKING:
    from rich.console import Console

MOMENTS = {
    "before": "before",
    "after_dp": "after DP",
    "after_non_dp": "after training without noise",
    "after_erasure": "after its erasure",
}


@click.command(epilog="Example: fedmem privacy audit --json")
@click.option("--quick", is_flag=True, help="Half the canaries: the same checks with a weaker bound.")
@json_option
def audit(quick: bool) -> None:
    """Attack our own training at a claimed ε of 2, as it is and with planted bugs.

    No vault of yours is opened: anchor, canaries and vaults are made for the audit. The lower bound is what the attack
    proves at least; far below the claim is as it should be, and no proof of the claim. Ends with 12 where the bound is
    above the claim, a bug is not caught, or a canary can be read where it should not.
    """
    from fedmem.cli.allocator import keep_buffers
    from fedmem.cli.progress import reporter
    from fedmem.errors import QualityGateFailed
    from fedmem.eval.audit import CANARIES, QUICK, failures
    from fedmem.eval.audit import audit as measure

    keep_buffers()
    with reporter() as progress:
        data = measure(QUICK if quick else CANARIES, progress=progress)
    emit("privacy.audit", data, lambda out: described(out, data))
    if wrong := failures(data):
        raise QualityGateFailed(f"The audit failed: {'; '.join(wrong)}. Do not train on private records; report a bug.")


def described(out: "Console", data: Mapping[str, Any]) -> None:
    """Print the claim and its bounds, what canaries gave away, and what became of each bug."""
    sure = f"{data['confidence']:.0%} sure, {data['canaries']} canaries, δ = {data['delta']:g}"
    pairs(out, [("claimed ε", data["claimed"]), ("at least, white box", data["white_box"])])
    pairs(out, [("at least, black box", data["black_box"]), ("these bounds are", sure)])
    rows = [[words, data["exposure"][name], data["extraction"][name]] for name, words in MOMENTS.items()]
    table(out, ("canaries", "exposure, bits", "extracted"), rows)
    found = data["planted"].items()
    table(
        out,
        ("planted bug", "caught", "by", "ε at least"),
        [[n, v["caught"], v["by"], v["lower_bound"]] for n, v in found],
    )
