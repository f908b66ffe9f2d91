"""Everything that fedmem uses of Flower, imported in one place, so that an upgrade of Flower concerns one file.

Invariants
- Flower is imported after its outbound switches are off (the package's `__init__` sets them).
- If Flower was imported before this module with telemetry on, `require_offline` raises Refused (I10).

>>> require_offline()
"""

import warnings
from pathlib import Path

import fedmem
from fedmem.errors import Refused
from fedmem.federation.offline import SWITCHES

with warnings.catch_warnings():
    # flwr imports typer, which imports names that click has deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
    from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
    from flwr.common.serde_utils import error_from_proto, error_to_proto, metadata_from_proto, metadata_to_proto
    from flwr.proto.error_pb2 import Error as ProtoError
    from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
    from flwr.proto.message_pb2 import Metadata as ProtoMetadata
    from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
    from flwr.proto.runtime_pb2 import PullAppMessagesRequest
    from flwr.serverapp import Grid, ServerApp
    from flwr.supercore import telemetry
    from flwr.supercore.inflatable.inflatable_object import (
        get_object_body,
        get_object_head_values_from_object_content,
        iterate_object_tree,
    )
    from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
    from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError, inflate_object_from_contents
    from flwr.supercore.run import Run
    from flwr.supercore.task_identity import TaskIdentity
    from flwr.supercore.utils import get_flwr_home
    from flwr.superlink.grid.http_grid import HttpGrid
    from httpx import HTTPError

__all__ = [
    "SUPERLINK_NODE_ID",
    "Array",
    "ArrayRecord",
    "ClientApp",
    "ConfigRecord",
    "ConfirmMessageReceivedRequest",
    "Context",
    "Error",
    "ErrorCode",
    "Grid",
    "HTTPError",
    "HttpGrid",
    "Message",
    "MetricRecord",
    "ObjectUnavailableError",
    "ProtoError",
    "ProtoMetadata",
    "ProtoRecordDict",
    "PullAppMessagesRequest",
    "RecordDict",
    "Run",
    "ServerApp",
    "TaskIdentity",
    "error_from_proto",
    "error_to_proto",
    "get_flwr_home",
    "get_object_body",
    "get_object_head_values_from_object_content",
    "inflate_object_from_contents",
    "iterate_object_tree",
    "make_pull_object_fn_protobuf",
    "metadata_from_proto",
    "metadata_to_proto",
    "recorddict_from_proto",
    "recorddict_to_proto",
    "require_offline",
]


def require_offline() -> None:
    """Raise Refused if this process loaded Flower with telemetry on, before fedmem could switch it off."""
    if SWITCHES["FLWR_TELEMETRY_ENABLED"] != telemetry.FLWR_TELEMETRY_ENABLED:
        raise Refused("Flower was loaded with telemetry on. Set FLWR_TELEMETRY_ENABLED=0 and start it again.")


def require_own_installation(app_file: str) -> None:
    """Check that `fedmem` was not loaded from the Flower bundle of `app_file`; a bundle shadows installed code.

    Args:
        app_file: path of the app's module, its `__file__`.

    Raises:
        Refused: the bundle carries its own fedmem.
    """
    bundle, loaded = Path(app_file).resolve().parents[1], Path(fedmem.__file__).resolve()
    if bundle.is_relative_to(get_flwr_home().resolve()) and loaded.is_relative_to(bundle):
        raise Refused("This bundle carries its own fedmem. Use one that holds server/ and client/ only.")
