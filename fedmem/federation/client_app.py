"""The Flower ClientApp around a `Device`.

Invariants
- A handler never raises: Flower would send the exception's text to the server. It answers with zeros instead.
- `evaluate` has no handler, so it is refused; nor has any message type that the wire does not name.
- Flower's `Context.state` stays empty: it is copied with each message.

>>> make_client_app(lambda context: None).__class__.__name__
'ClientApp'
"""

import logging
from collections.abc import Callable

from fedmem.errors import FedmemError
from fedmem.federation import fixedpoint
from fedmem.federation import flower_codec as records
from fedmem.federation.device import Device
from fedmem.federation.flower import ClientApp, Context, Message, RecordDict
from fedmem.federation.wire import Fields

_log = logging.getLogger("fedmem.device")

DeviceFor = Callable[[Context], Device]


def make_client_app(device_for: DeviceFor) -> ClientApp:
    """A ClientApp whose device is built by `device_for` from Flower's context (partition id, node and run config)."""
    app = ClientApp()

    def train_anchor(message: Message, context: Context) -> Message:
        return Message(answer(device_for, message.content, context), reply_to=message)

    app.train("anchor")(train_anchor)
    return app


def answer(device_for: DeviceFor, content: RecordDict, context: Context) -> RecordDict:
    """The reply to a `train.anchor` request.

    Guarantees: of one shape whatever happens, and never an exception. If the device cannot be built, the reply is zeros
    in the shapes that the request itself named. A device without approval ends the process by `NoApproval` instead; a
    deployed `device_for` does so too, where it has no vault process.
    """
    try:
        return records.to_reply(_reply(device_for(context), content))
    except Exception as error:  # noqa: BLE001  (Flower would send the text of whatever is raised here)
        _log.warning("A device could not answer: %s", type(error).__name__)
        return records.to_reply(Fields(dict(fixedpoint.zeros(records.requested_shapes(content)))))


def _reply(device: Device, content: RecordDict) -> Fields:
    try:
        request = records.from_request(content)
    except FedmemError:
        return device.silence()
    return device.answer(request)
