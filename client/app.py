"""The Flower ClientApp of a device: train on shareable records, and send updates that the vault process has approved.

Invariants
- `fedmem` comes from this device's own installation, never from the bundle that the server supplied.
- This process loads no module of the vault. It gets records and approvals over the socket of `fedmem client run`.
- Without a vault process nothing is sent, not even zeros.

    fedmem client run --subject ana --release releases/… --terms terms.toml --superlink 127.0.0.1:9092
"""

from fedmem.federation.client_app import make_client_app
from fedmem.federation.device import Device, LocalTrain, TrainConfig
from fedmem.federation.flower import Context, require_offline, require_own_installation
from fedmem.federation.port import NoApproval
from fedmem.federation.runtime import Runtime
from fedmem.federation.socket_port import SocketPort
from fedmem.federation.wire import Params

require_offline()
require_own_installation(__file__)


def device_for(context: Context) -> Device:
    """Return this device, connected to its vault process. Flower starts one process for each message.

    Raises NoApproval if the vault process cannot be reached.
    """
    try:
        runtime = Runtime.from_environment()
        terms = runtime.terms()
        port = SocketPort(runtime.folder, terms, runtime.token())
    except Exception as error:  # noqa: BLE001  (without a vault process nothing is sent)
        raise NoApproval(error) from None
    index = int(context.node_config.get("partition-id", context.node_id))
    return Device(index, port, terms.plan, terms.shapes, port.watched(training(runtime, port)))


def training(runtime: Runtime, port: SocketPort) -> LocalTrain:
    """Return local training on the release and on the records of the port. Torch is loaded when training begins."""

    def train(params: Params, config: TrainConfig) -> Params:
        from fedmem.federation.local_training import make_release_train

        return make_release_train(runtime.release(), runtime.agreement(), port.shareable)(params, config)

    return train


app = make_client_app(device_for)
