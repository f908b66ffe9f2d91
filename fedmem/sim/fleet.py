"""Run the devices of an in-process federation: apps, their contexts, and their answers as bytes.

Invariants
- A content is serialised once, whatever the cohort, and parsed once in a process. Each device gets its own copy.
- An exception in a ClientApp becomes an error reply with its text, as in Flower; nothing is hidden.
- An answer has the same bytes in every process: Flower's own serialisation.

>>> Fleet({}).nodes
[]
"""

from collections.abc import Mapping
from copy import copy
from functools import cached_property
from typing import Any, NamedTuple

from fedmem.federation.flower import (
    Array,
    ClientApp,
    Context,
    Error,
    ErrorCode,
    Message,
    ProtoRecordDict,
    RecordDict,
    recorddict_from_proto,
)
from fedmem.federation.payload import Evidence, measure_payload
from fedmem.federation.transcript import serialise_content, serialise_payload

NODE_BASE = 1000
"""The node id of device 0; simulated devices have the ids NODE_BASE + index."""


class Answer(NamedTuple):
    """The answer of a device.

    Attributes:
        reply: the metadata of the reply, or its error.
        payload: the bytes of its payload.
        state: the bytes that the device left in its context.
    """

    reply: Message
    payload: bytes
    state: bytes = b""


class Content:
    """A record dict in its serialised form, from which each device gets a copy.

    Args:
        data: the serialised record dict.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data

    @cached_property
    def evidence(self) -> Evidence:
        """The size and digest of this content, as a transcript keeps them."""
        return measure_payload(self.data)

    @cached_property
    def _parsed(self) -> RecordDict:
        return parse_content(self.data)

    def copy(self) -> RecordDict:
        """Return a copy with new records and arrays; it shares only text, numbers and bytes, which are immutable."""
        duplicate = self._parsed.copy()
        for name, record in self._parsed.items():
            duplicate[name] = copied = record.copy()
            for key, value in record.items():
                if isinstance(value, (Array, list)):
                    copied[key] = copy(value)
        return duplicate


def parse_content(data: bytes) -> RecordDict:
    """Return the record dict that these bytes encode.

    Args:
        data: a record dict, as `serialise_content` writes it.
    """
    return recorddict_from_proto(ProtoRecordDict.FromString(data))


class Request(NamedTuple):
    """A message to a device.

    Attributes:
        message: the message.
        content: its content as bytes, shared by all requests of a round.
    """

    message: Message
    content: Content


class Fleet:
    """ClientApps by device index, each with the context that Flower keeps for it.

    Args:
        apps: the apps by device index.
        run_id: the id of Flower's run.
        config: the run config that every app gets.
    """

    def __init__(self, apps: Mapping[int, ClientApp], run_id: int = 1, config: dict[str, Any] | None = None) -> None:
        self._apps = {NODE_BASE + index: app for index, app in sorted(apps.items())}
        self._contexts = {node: self._context(node, run_id, config or {}) for node in self._apps}

    def _context(self, node: int, run_id: int, config: dict[str, Any]) -> Context:
        partition = {"partition-id": node - NODE_BASE, "num-partitions": len(self._apps)}
        return Context(run_id, node, partition, RecordDict(), dict(config))

    @property
    def nodes(self) -> list[int]:
        """The ids of all devices, ascending."""
        return list(self._apps)

    def answer(self, request: Request) -> Answer:
        """Run the device that a request is addressed to, on its own copy of the content.

        Args:
            request: the request; its message names the device.

        Returns:
            The answer; an error reply where the app raised an exception.
        """
        metadata = request.message.metadata
        node, received = metadata.dst_node_id, Message(request.content.copy(), metadata=metadata)
        context = self._contexts[node]
        try:
            reply = self._apps[node](received, context)
        except Exception as error:  # noqa: BLE001  (Flower itself catches every exception of an app)
            text = f"{type(error)}:<'{error}'>"
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, text), reply_to=received)
        return Answer(reply, serialise_payload(reply), serialise_content(context.state) if context.state else b"")
