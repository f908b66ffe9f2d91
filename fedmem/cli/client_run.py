"""`fedmem client run`: take part in a federation with the shareable records of one vault.

Invariants
- The vault process opens no network socket. Its child process, Flower's SuperNode, does.
- The token and the socket are in a folder that only this user can enter. Neither is printed.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem.cli.options import Secret, find_vault, open_vault, vault_options
from fedmem.cli.output import emit, json_option, pairs, say

if TYPE_CHECKING:
    from fedmem.federation.runtime import Runtime

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(epilog="Example: fedmem client run --subject ana --release r1 --terms terms.toml --superlink host:9092")
@vault_options
@click.option("--release", required=True, type=click.Path(path_type=Path), help="Folder of the release.")
@click.option("--terms", required=True, type=FILE, help="The federation's public terms, from its coordinator.")
@click.option("--policy", default="default", show_default=True, help="The policy: places records, sets the budget.")
@click.option("--superlink", metavar="HOST:PORT", help="Address of the coordinator's SuperLink.")
@click.option("--insecure", is_flag=True, help="Connect without TLS. For a SuperLink on this machine.")
@click.option("--root-certificates", type=FILE, help="PEM file to check the SuperLink's certificate with.")
@click.option("--private-key", type=FILE, help="The SuperNode's private key, if the SuperLink requires one.")
@click.option("--trusted-entities", type=FILE, help="YAML file of the keys whose signed bundles may run here.")
@click.option("--port", default=9094, show_default=True, help="Port on 127.0.0.1 for the SuperNode's processes.")
@click.option(
    "--no-supernode", is_flag=True, help="Start no SuperNode: print the environment variable to start one with."
)
@json_option
def run(subject: str, vault_path: str | None, secret: Secret, **options: Any) -> None:
    """Take part in federated rounds until SIGTERM or Ctrl-C.

    This process opens the vault and gives out only records that the policy places as shared. Flower's SuperNode runs in
    another process and trains on these records. It sends an update only after this process has checked it and entered
    it in the egress ledger. The exit code is 4 if the federation would pass the budget that the policy sets for all
    federations of this device together, or if its plan adds no noise and the policy does not say allow_no_dp = true.
    """
    from fedmem.cli.client import stop_on_signal
    from fedmem.device.running import Running
    from fedmem.federation.terms import Agreement
    from fedmem.policy.policy import Policy

    node = node_options(options)
    device = Running(
        find_vault(subject, vault_path),
        lambda: open_vault(subject, vault_path, secret, write=False),
        Policy.load(options["policy"]),
        Agreement.load(options["terms"]),
        options["release"].resolve(),
    )
    rounds = device.agreement.plan.rounds
    with stop_on_signal() as stop:
        released = device.run(stop, lambda runtime, granted: say_ready(runtime, granted, rounds), node)
    data = {"released": released}
    emit("client.run", data, lambda out: pairs(out, data.items()))


def node_options(options: dict[str, Any]) -> Any:
    """Return the options of the SuperNode. Return None if the operator starts it.

    Args:
        options: Values of the options of `client run`.

    Raises:
        UsageError: The address of the SuperLink is missing.
    """
    from fedmem.device.supernode import Options
    from fedmem.errors import UsageError

    if options["no_supernode"]:
        return None
    if options["superlink"] is None:
        raise UsageError("Give --superlink HOST:PORT, or --no-supernode and start a SuperNode yourself.")
    names = ("superlink", "insecure", "root_certificates", "private_key", "trusted_entities", "port")
    return Options(**{name: options[name] for name in names})


def say_ready(runtime: "Runtime", granted: int, rounds: int) -> None:
    """Tell the operator the folder of the device's socket, and rounds of the plan that its budget does not cover.

    Args:
        runtime: The runtime folder of the device.
        granted: Number of rounds that the device's budget covers.
        rounds: Number of rounds of the plan.
    """
    from fedmem.federation.runtime import DEVICE

    if granted < rounds:
        say(f"The device's budget covers {granted} of the plan's {rounds} rounds. In the others it answers with zeros.")
    say(f"The vault process listens. A SuperNode of your own needs {DEVICE}={runtime.folder}")
