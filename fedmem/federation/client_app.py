"""The Flower ClientApp around a `Device`.

Invariants
- A handler never raises: Flower would send the exception's text to the server. It answers with zeros instead.
- A request learns nothing from how it fails. A device that is broken, refuses or has nothing gives the same bytes:
  zeros in the shapes of its own release.
- `evaluate` and every message type that the wire does not name have no handler, so they are refused.
- Flower's `Context.state` stays empty: it is copied with each message.

>>> make_client_app(lambda context: None).__class__.__name__
'ClientApp'
"""

import logging
from collections.abc import Callable

from fedmem.federation import fixedpoint
from fedmem.federation import flower_codec as records
from fedmem.federation.device import Device
from fedmem.federation.flower import ClientApp, Context, Message, RecordDict
from fedmem.federation.wire import Fields, Shapes

_log = logging.getLogger("fedmem.device")

DeviceFor = Callable[[Context], Device]


def make_client_app(device_for: DeviceFor, shapes: Shapes | None = None) -> ClientApp:
    """Return a ClientApp that answers `train.anchor` requests.

    Args:
        device_for: returns the device, from Flower's context (partition id, node config and run config).
        shapes: names and shapes of the device's own release, for the answer where `device_for` fails; None for those
            of the request.
    """
    app = ClientApp()

    def train_anchor(message: Message, context: Context) -> Message:
        return Message(answer_request(device_for, message.content, context, shapes), reply_to=message)

    app.train("anchor")(train_anchor)
    return app


def answer_request(
    device_for: DeviceFor, content: RecordDict, context: Context, shapes: Shapes | None = None
) -> RecordDict:
    """Return the reply to a `train.anchor` request.

    Guarantees: the reply always has the same shape, and no exception is raised. If the device cannot be built, the
    reply is zeros in `shapes`. A device without approval ends the process by `NoApproval` instead. A deployed
    `device_for` does the same where no vault process runs.

    Args:
        device_for: returns the device, from Flower's context.
        content: the request as it arrived.
        context: Flower's context of this node.
        shapes: as for `make_client_app`.
    """
    try:
        return records.to_reply(_reply(device_for(context), content))
    except Exception as error:  # noqa: BLE001  (Flower would send the exception's text)
        _log.warning("A device could not answer: %s", type(error).__name__)
        return _zeros(records.requested_shapes(content) if shapes is None else shapes)


def _reply(device: Device, content: RecordDict) -> Fields:
    try:
        request = records.from_request(content, device.request_schema)
    except Exception as error:  # noqa: BLE001  (a crafted record may break any access)
        _log.warning("A request was not used: %s", type(error).__name__)
        return device.answer_zeros()
    return device.answer(request)


def _zeros(shapes: Shapes) -> RecordDict:
    try:
        return records.to_reply(Fields(dict(fixedpoint.zeros(shapes))))
    except Exception:  # noqa: BLE001  (shapes that numpy cannot make)
        return records.to_reply(Fields({}))
