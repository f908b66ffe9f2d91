"""What a device does with a request: train on shareable records, clip, ask the port, answer (I1).

Invariants
- The answer depends on the request, the shareable records and (seed, device, round) alone. Nothing private is in reach.
- Every answer has one shape and size. An empty device, a wrong request, another plan, an exception in training, a NaN:
  each gives zeros, and no error text leaves.
- Nothing is sent that the port has not approved.

>>> import numpy as np
>>> from fedmem.federation.port import InprocPort
>>> plan = DevicePlan(population=1, unsafe_no_dp=True, unsafe_reason="an example")
>>> port = InprocPort([], plan, {"w": (1,)})
>>> device = Device(0, port, plan, {"w": (1,)}, train=lambda params, config: {"w": params["w"] / 0})
>>> device.answer(wire.Fields({})).arrays["w"].tolist()
[0]
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedmem.errors import Refused
from fedmem.federation import fixedpoint, wire
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.port import VaultPort
from fedmem.federation.wire import Fields, Params, Shapes

_log = logging.getLogger("fedmem.device")


@dataclass(frozen=True)
class TrainConfig:
    """Public settings of one device's part of one round; `seed` is this device's own."""

    round: int
    seed: int
    steps: int
    batch: int
    learning_rate: float
    memory_learning_rate: float = 0.0


LocalTrain = Callable[[Params, TrainConfig], Params]


def device_seed(seed: int, device: int, number: int) -> int:
    """A 63-bit seed from (configuration seed, device, round), independent between devices and rounds."""
    text = f"fedmem/device-seed/{seed}/{device}/{number}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def encode_update(before: Params, after: Params, clip: float) -> dict[str, np.ndarray]:
    """The update as clipped grid cells: quantise, decode, clip (docs/design.md, §7).

    Raises ValueError for a non-finite or missing parameter.
    """
    if set(before) != set(after) or any(after[n].shape != before[n].shape for n in before):
        raise ValueError("Training returned other parameters than it was given.")
    delta = {name: np.subtract(after[name], before[name], dtype=np.float64) for name in sorted(before)}
    norm = np.sqrt(sum(float(np.square(part).sum()) for part in delta.values()))
    # A first shrink in float keeps a diverged update inside int32; the integer clip below is the one that counts.
    shrink = min(1.0, 2.0 * clip / norm) if norm > 0 else 1.0
    step = fixedpoint.grid_step(clip)
    cells = {name: fixedpoint.quantise((part * shrink).astype(np.float32), step) for name, part in delta.items()}
    return dict(fixedpoint.clip_grid(cells, clip))


class Device:
    """The device side of a federation, without Flower.

    `index`: the device's public number. `shapes`: names and shapes of the federated parameters, from its own release.
    `failed`: told, on the device only, what went wrong in training.
    """

    def __init__(
        self,
        index: int,
        port: VaultPort,
        plan: DevicePlan,
        shapes: Shapes,
        train: LocalTrain,
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        self._index, self._port, self._plan, self._train, self._failed = index, port, plan, train, failed
        self._shapes = {name: tuple(shapes[name]) for name in sorted(shapes)}
        self._schema = wire.anchor_request(self._shapes)

    def answer(self, request: Fields) -> Fields:
        """The approved reply to a `train.anchor` request; zeros whenever there is nothing to say.

        Guarantees: keys, shapes and size are those of the reply schema whatever happens (I1, I2); never raises an
        error of training.
        """
        number = 0
        try:
            config = self._config(request)
            number = config.round
            before = wire.unpack(request.arrays)
            after = self._train({name: value.copy() for name, value in before.items()}, config)
            return self._port.approve(Fields(encode_update(before, after, self._plan.clip)), number)
        except Exception as error:  # noqa: BLE001  (whatever fails, the answer is zeros: I1)
            self._report(error)
            return self.silence(number)

    def silence(self, number: int = 0) -> Fields:
        """An approved update of zeros."""
        return self._port.approve(Fields(dict(fixedpoint.zeros(self._shapes))), number)

    def _config(self, request: Fields) -> TrainConfig:
        wire.check(request, self._schema)
        s = request.scalars
        if s["plan"] != self._plan.digest():
            raise Refused("The request belongs to another device plan than the one this device agreed to.")
        number = int(s["round"])
        seed = device_seed(int(s["seed"]), self._index, number)
        rates = float(s["learning_rate"]), float(s["memory_learning_rate"])
        return TrainConfig(number, seed, int(s["steps"]), int(s["batch"]), *rates)

    def _report(self, error: Exception) -> None:
        # The class only: an error's text may quote a record.
        _log.warning("A round gave no update: %s", type(error).__name__)
        if self._failed:
            self._failed(error)
