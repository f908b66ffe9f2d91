"""`fedmem privacy audit`: attack private training, and compare the measured privacy loss with the claim."""

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
@click.option("--quick", is_flag=True, help="Use half the canaries: the same checks with a weaker bound.")
@json_option
def audit(quick: bool) -> None:
    """Attack private training at a claimed ε of 2, without changes and with planted bugs.

    None of your vaults is opened: the audit makes its own anchor, canaries and vaults. The attack proves a lower bound
    of ε. A bound far below the claim is expected, and does not prove the claim. The exit code is 12 if the bound is
    above the claim, if a planted bug is not caught, or if an erased block still answers.
    """
    from fedmem.cli.allocator import keep_buffers
    from fedmem.cli.progress import reporter
    from fedmem.errors import QualityGateFailed
    from fedmem.eval.audit import CANARIES, QUICK, failures
    from fedmem.eval.audit import run_audit as measure

    keep_buffers()
    with reporter() as progress:
        data = measure(QUICK if quick else CANARIES, progress=progress)
    emit("privacy.audit", data, lambda out: print_audit(out, data))
    if reasons := failures(data):
        raise QualityGateFailed(
            f"The audit failed: {'; '.join(reasons)}. Do not train on private records; report a bug."
        )


def print_audit(out: "Console", data: Mapping[str, Any]) -> None:
    """Print the claim and its bounds, the exposure of the canaries, and the result for each planted bug.

    Args:
        out: The console.
        data: Data of the JSON envelope.
    """
    confidence = f"{data['confidence']:.0%} sure, {data['canaries']} canaries, δ = {data['delta']:g}"
    pairs(out, [("claimed ε", data["claimed"]), ("at least, white box", data["white_box"])])
    pairs(out, [("at least, black box", data["black_box"]), ("these bounds are", confidence)])
    pairs(out, [("p-value of the claim", data["p_value"]), ("by", data["method"])])
    rows = [[words, data["exposure"][name], data["extraction"][name]] for name, words in MOMENTS.items()]
    table(out, ("canaries", "exposure, bits", "extracted"), rows)
    bugs = [[name, bug["caught"], bug["by"], bug["lower_bound"]] for name, bug in data["planted"].items()]
    table(out, ("planted bug", "caught", "by", "ε at least"), bugs)
