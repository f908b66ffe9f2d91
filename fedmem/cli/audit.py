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
PLACES = {
    "updates": "updates of a training",
    "final_block": "the block after a training",
    "federated": "parameters after a round",
}


@click.command(epilog="Example: fedmem privacy audit --json")
@click.option("--quick", is_flag=True, help="Use half the canaries: the same checks with a weaker bound.")
@json_option
def audit(quick: bool) -> None:
    """Attack private training at a claimed ε of 2, without changes and with planted bugs.

    None of your vaults is opened: the audit makes its own anchor, canaries and vaults. The attack proves a lower bound
    of ε. A bound far below the claim is expected, and does not prove the claim. A second attack reads last bits, which
    noise in floating point gives away. The exit code is 12 if the bound is above the claim, if a planted bug is not
    caught, if last bits tell who took part, or if an erased block still answers.
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
    """Print the claim and its bounds, the exposure of canaries, the planted bugs, and the attack on last bits.

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
    bits = [[words, *_row_of_bits(data["rounding"][name])] for name, words in PLACES.items()]
    table(out, ("last bits of", "right guesses", "chance of a right guess", "impossible values", "float noise"), bits)


def _row_of_bits(place: Mapping[str, Any]) -> list[str]:
    """Return the result of the rounding attack at one place, in words."""
    low, high = place["interval"]
    planted = f"{'found' if place['planted_caught'] else 'MISSED'}, {place['planted_correct']} of {place['out_of']}"
    return [f"{place['correct']} of {place['out_of']}", f"{low:.2f} to {high:.2f}", str(place["impossible"]), planted]
