"""Replies and requests that no honest side sends, drawn from a seed: heads, types, names, sizes, values, metadata.

Every drawn one is wrong in at least one place, so none may be counted, and none may start a training.
"""

import random
from copy import copy
from typing import Any

import numpy as np

from fedmem.federation import flower_codec as records
from fedmem.federation.flower import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from fedmem.federation.wire import Fields

Draw = random.Random
NUMBERS = (0, -1, 1, 2, 7, 2**31 - 1, 2**31, 2**32, 2**40, 2**63 - 1, 2**63, 2**64, 2**70, -(2**63))
TEXTS = ("", "?", "ſ", "\x00", "\ud800", "²", "9" * 5000, "x" * 100_000, "\n\x1b[2J", "update", "../w")
THINGS: tuple[Any, ...] = (None, True, 1.5, float("nan"), b"", [], [3], {}, "3", (1,), object())


def _shape(draw: Draw, honest: tuple[int, ...]) -> Any:
    drawn = tuple(draw.choice(NUMBERS) for _ in range(draw.choice((0, 1, 2, 3, 7, 8, 65, 200))))
    shape = draw.choice((drawn, drawn, (*honest, 1), (0, *honest), (*honest[::-1], 2), draw.choice(THINGS)))
    return shape if shape != honest else (*honest, 1)


def _array(draw: Draw, honest: Array) -> Array:
    """An array in which one field of its head, or its data, is not the honest one."""
    array = Array(honest.dtype, honest.shape, honest.stype, honest.data)
    kind = draw.choice(("shape", "shape", "dtype", "stype", "data", "thing", "cells"))
    data = array.data
    changed: dict[str, Any] = {
        "shape": lambda: {"shape": _shape(draw, honest.shape)},
        "dtype": lambda: {"dtype": draw.choice((*TEXTS, "object", "float32", "int64", "uint8", "<i4", "O", "i4,i4"))},
        "stype": lambda: {"stype": draw.choice((*TEXTS, "pickle", "numpy.ndarray", f"fedmem.raw.le/{draw.random()}"))},
        "data": lambda: {
            "data": draw.choice((b"", data[:-1], data + b"\0", data * 2, bytes(draw.randrange(5000) * 4 + 1)))
        },
        "thing": lambda: {draw.choice(("shape", "dtype", "stype", "data")): draw.choice(THINGS)},
        "cells": lambda: {"data": _out_of_range(draw, array)},
    }[kind]()
    array.__dict__.update(changed)
    return array


def _out_of_range(draw: Draw, array: Array) -> bytes:
    kind, bad = ("<i4", (2**31 - 1, -(2**31), 2**30)) if array.dtype == "int32" else ("<u2", (0x7F80, 0xFFFF, 0x7FC0))
    values = np.frombuffer(array.data, kind).copy()
    values[draw.randrange(len(values))] = draw.choice(bad)
    return values.tobytes()


def _names(draw: Draw, arrays: dict[str, Array]) -> dict[str, Array]:
    name, array = draw.choice(sorted(arrays.items()))
    rest = {key: value for key, value in arrays.items() if key != name}
    new = draw.choice([text for text in (*TEXTS, "w ", "W", "theirs") if text not in arrays])
    many = {f"{new}{number}": array for number in range(draw.choice((1, 300)))}
    return draw.choice((rest, {}, {**rest, new: array}, {**arrays, new: array}, {**arrays, **many}))


def _record(draw: Draw, honest: ArrayRecord) -> Any:
    arrays = dict(honest.items())
    if draw.random() < 0.3:
        return ArrayRecord(_names(draw, arrays))
    name = draw.choice(sorted(arrays))
    record = ArrayRecord(arrays)
    record[name] = _array(draw, arrays[name])  # the constructor would refuse some of them
    return record


def _other_records(draw: Draw, content: RecordDict) -> RecordDict:
    extra = draw.choice(
        (MetricRecord({"loss": 0.5}), ConfigRecord({"note": "x" * draw.choice((1, 100_000))}), ArrayRecord({}))
    )
    name = draw.choice(sorted(content))
    rest = {key: value for key, value in content.items() if key != name}
    wrong = ConfigRecord({}) if isinstance(content[name], ArrayRecord) else MetricRecord({"round": 1})
    new = draw.choice([text for text in TEXTS if text not in content])
    return RecordDict(
        draw.choice((rest, {}, {**content, new: extra}, {**rest, name: wrong}, {**rest, new: content[name]}))
    )


def crafted_reply(draw: Draw, message: Message, update: Fields) -> Message:
    """A wrong reply to `message`; its honest one would hold `update`.

    Args:
        draw: the source of every choice.
        message: the request.
        update: the fields of an honest reply.
    """
    honest = records.to_reply(update)
    reply = Message(honest, reply_to=message)
    kind = draw.choice(("array", "array", "array", "records", "metadata", "error", "nothing"))
    if kind == "array":
        reply.content["update"] = _record(draw, honest["update"])
    elif kind == "records":
        reply = Message(_other_records(draw, honest), metadata=reply.metadata)
    elif kind == "error":
        reply = Message(Error(draw.choice((0, 1, 99)), draw.choice(TEXTS)), metadata=reply.metadata)
    elif kind == "nothing":
        reply.__dict__["_content"] = draw.choice((None, 3, [], {"update": None}, {"update": {"b": None}}))
    else:
        _metadata(draw, reply)
    return reply


def _metadata(draw: Draw, reply: Message) -> None:
    name = draw.choice(("_group_id", "_run_id", "_src_node_id", "_message_type", "_reply_to_message_id"))
    values = (*TEXTS, *THINGS, *NUMBERS)
    metadata = copy(reply.metadata)
    metadata.__dict__[name] = draw.choice([v for v in values if v is not True and v != 1])
    reply.__dict__["_metadata"] = metadata


def crafted_request(draw: Draw, honest: Fields) -> RecordDict:
    """A wrong request.

    Args:
        draw: the source of every choice.
        honest: the fields of an honest request.
    """
    content = records.to_request(honest)
    kind = draw.choice(("array", "array", "records", "scalar", "scalar"))
    if kind == "array":
        content["params"] = _record(draw, content["params"])
        return content
    return _other_records(draw, content) if kind == "records" else _scalars(draw, content)


def _scalars(draw: Draw, content: RecordDict) -> RecordDict:
    scalars: dict[str, Any] = dict(content["config"].items())
    name = draw.choice(sorted(scalars))
    if draw.random() < 0.2:
        scalars = {key: value for key, value in scalars.items() if key != name}
    elif draw.random() < 0.2:
        scalars["surprise"] = 1
    else:
        scalars[name] = draw.choice(WRONG_SCALARS[type(scalars[name])])
    # Past Flower's own check of types.
    content["config"].__dict__["_data"] = scalars
    return content


WRONG_SCALARS: dict[type, tuple[Any, ...]] = {
    int: (-1, 2**63, 2**70, True, "1", 1.0, b"1", None, [1]),
    float: (-1.0, 1e9, float("nan"), float("inf"), 1, "0.1", None, [0.1]),
    str: ("", "0" * 64, "0" * 63, "\ud800" * 64, "0" * 100_000, b"0" * 64, 1, None, ["0" * 64]),
}
