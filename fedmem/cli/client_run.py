"""`fedmem client run`: take part in a federation with the shareable records of one vault.

Invariants
- The vault process opens no network socket; Flower's SuperNode, its child, does.
- The token and the socket lie in a folder that only this user may enter; neither is printed.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem.cli.options import Secret, find_vault, opened, vault_options
from fedmem.cli.output import emit, json_option, pairs, say

if TYPE_CHECKING:
    from fedmem.federation.runtime import Runtime

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(epilog="Example: fedmem client run --subject ana --release r1 --terms terms.toml --superlink host:9092")
@vault_options
@click.option("--release", required=True, type=click.Path(path_type=Path), help="Folder of the release.")
@click.option("--terms", required=True, type=FILE, help="The federation's public terms, from its coordinator.")
@click.option("--policy", default="default", show_default=True, help="The policy that places records.")
@click.option("--superlink", metavar="HOST:PORT", help="Where the coordinator's SuperLink listens.")
@click.option("--insecure", is_flag=True, help="Connect without TLS; for a SuperLink on this machine.")
@click.option("--root-certificates", type=FILE, help="PEM file that the SuperLink's certificate is checked with.")
@click.option("--private-key", type=FILE, help="The SuperNode's private key, where the SuperLink asks for one.")
@click.option("--trusted-entities", type=FILE, help="YAML file of the keys whose signed bundles may run here.")
@click.option("--port", default=9094, show_default=True, help="Port on 127.0.0.1 for the SuperNode's processes.")
@click.option("--no-supernode", is_flag=True, help="Start none: print the environment variable to start one with.")
@json_option
def run(subject: str, vault: str | None, secret: Secret, **options: Any) -> None:
    """Take part in federated rounds until SIGTERM or Ctrl-C.

    This process holds the vault and gives out records that the policy places as shared. Flower's SuperNode runs beside
    it, trains on them, and sends an update only after it was checked and entered in the egress ledger.
    """
    from fedmem.cli.client import stopping
    from fedmem.device.running import Running
    from fedmem.federation.terms import Agreement
    from fedmem.policy.policy import Policy

    node = node_options(options)
    device = Running(
        find_vault(subject, vault),
        lambda: opened(subject, vault, secret, write=False),
        Policy.load(options["policy"]),
        Agreement.load(options["terms"]),
        options["release"].resolve(),
    )
    with stopping() as stop:
        released = device.run(stop, ready, node)
    data = {"released": released}
    emit("client.run", data, lambda out: pairs(out, data.items()))


def node_options(options: dict[str, Any]) -> Any:
    """Return the SuperNode's options, or None where the operator starts it. Raises UsageError."""
    from fedmem.device.supernode import Options
    from fedmem.errors import UsageError

    if options["no_supernode"]:
        return None
    if options["superlink"] is None:
        raise UsageError("Give --superlink HOST:PORT, or --no-supernode and start a SuperNode yourself.")
    names = ("superlink", "insecure", "root_certificates", "private_key", "trusted_entities", "port")
    return Options(**{name: options[name] for name in names})


def ready(runtime: "Runtime") -> None:
    """Tell the operator where the device's socket is."""
    from fedmem.federation.runtime import DEVICE

    say(f"The vault process listens. A SuperNode of your own needs {DEVICE}={runtime.folder}")
