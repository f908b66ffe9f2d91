"""The Flower ClientApp: partition i trains on the shareable records of device i of a run.

Invariants
- `fedmem` comes from this device's own installation, never from the bundle that the server supplied.
- The private part of the scenario is not built in this process.

    flwr run . --federation-config "num-supernodes=2"
"""

from functools import cache

from fedmem.federation import apps
from fedmem.federation.device import Device
from fedmem.federation.flower import Context, require_offline
from fedmem.sim.replay import Replay

require_offline()
apps.require_own_installation(__file__)


@cache
def _device(release: str, devices: int, rounds: int, index: int) -> Device:
    return Replay.of({"release": release, "devices": devices, "rounds": rounds}).device(index)


def device_for(context: Context) -> Device:
    """The device of this partition; kept between rounds by the process, not by Flower's context."""
    config = context.run_config
    terms = str(config["release"]), int(config["devices"]), int(config["rounds"])
    return _device(*terms, int(context.node_config["partition-id"]))


app = apps.make_client_app(device_for)
