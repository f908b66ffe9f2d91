"""Answer a request on a device: train on shareable records, clip the update, get its approval, reply (I1).

Invariants
- The answer depends on the request, the shareable records and (seed, device, round) alone. This module has no access to
  private records.
- Every answer has the same shape and size. An empty device, a wrong request, another plan, an exception in training or
  a NaN gives zeros; no error text leaves.
- Nothing is trained for a round that the port does not admit.
- Nothing is sent without the port's approval. Where not even zeros are approved, the process ends by `NoApproval`.

>>> import numpy as np
>>> class Port:
...     def admit(self, number):
...         pass
...     def approve(self, fields, number):
...         return fields
>>> plan = DevicePlan(population=1, unsafe_no_dp=True, unsafe_reason="an example")
>>> device = Device(0, Port(), plan, {"w": (1,)}, train=lambda params, config: {"w": params["w"] / 0})
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
from fedmem.federation.port import NoApproval, VaultPort
from fedmem.federation.wire import Fields, Params, Shapes

_log = logging.getLogger("fedmem.device")


@dataclass(frozen=True)
class TrainConfig:
    """Public settings of the training of one device in one round.

    Attributes:
        round: number of the round, from 1.
        seed: seed of this device and round.
        steps: number of local steps.
        batch: sequences of a step.
        learning_rate: peak learning rate of the anchor.
        memory_learning_rate: peak learning rate of the blocks.
    """

    round: int
    seed: int
    steps: int
    batch: int
    learning_rate: float
    memory_learning_rate: float = 0.0


LocalTrain = Callable[[Params, TrainConfig], Params]


def device_seed(seed: int, device: int, number: int) -> int:
    """Return a 63-bit seed from (configuration seed, device, round), independent between devices and rounds.

    Args:
        seed: the seed of the request.
        device: public number of the device.
        number: number of the round.
    """
    text = f"fedmem/device-seed/{seed}/{device}/{number}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def encode_update(before: Params, after: Params, clip: float) -> dict[str, np.ndarray]:
    """Return the update as clipped grid cells: quantise, then clip (docs/design.md, §7).

    Args:
        before, after: the parameters before and after training; float32 arrays by name, of equal shapes.
        clip: the plan's clip norm.

    Guarantees: the decoded L2 norm is at most `clip`, as in `fixedpoint.clip_grid`.

    Raises ValueError for a value that is not finite, and for a missing or an additional parameter.
    """
    if set(before) != set(after) or any(after[n].shape != before[n].shape for n in before):
        raise ValueError("Training returned other parameters than it was given.")
    delta = {name: np.subtract(after[name], before[name], dtype=np.float64) for name in sorted(before)}
    norm = np.sqrt(sum(float(np.square(part).sum()) for part in delta.values()))
    # A first scaling in float keeps a diverged update inside int32. The guarantee comes from the integer clip below.
    shrink = min(1.0, 2.0 * clip / norm) if norm > 0 else 1.0
    step = fixedpoint.grid_step(clip)
    cells = {name: fixedpoint.quantise((part * shrink).astype(np.float32), step) for name, part in delta.items()}
    return dict(fixedpoint.clip_grid(cells, clip))


class Device:
    """The device side of a federation, without Flower.

    Args:
        index: the device's public number.
        port: the port that approves answers.
        plan: the plan that this device agreed to.
        shapes: names and shapes of the federated parameters, from the device's own release.
        train: the local training.
        failed: is called with each error of training, on the device only.

    Attributes:
        request_schema: the request schema of the device's own release.
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
        self.request_schema = wire.anchor_request(self._shapes)

    def answer(self, request: Fields) -> Fields:
        """Return the approved reply to a `train.anchor` request; zeros after any error.

        Guarantees: keys, shapes and size are always those of the reply schema (I1, I2). No error of training is raised.

        Args:
            request: the fields of the request, not yet checked.

        Raises:
            NoApproval: the port does not even approve zeros.
        """
        number = 0
        try:
            config = self._config(request)
            number = config.round
            self._port.admit(number)
            before = wire.unpack(request.arrays)
            after = self._train({name: value.copy() for name, value in before.items()}, config)
            return self._port.approve(Fields(encode_update(before, after, self._plan.clip)), number)
        except Exception as error:  # noqa: BLE001  (after any error the answer is zeros: I1)
            self._report(error)
            return self.answer_zeros(number)

    def answer_zeros(self, number: int = 0) -> Fields:
        """Return an approved update of zeros for round `number` (0: no round).

        Args:
            number: number of the round; 0 where the request names none.

        Raises:
            NoApproval: the port does not approve the zeros.
        """
        try:
            return self._port.approve(Fields(dict(fixedpoint.zeros(self._shapes))), number)
        except Exception as error:  # noqa: BLE001  (after any error nothing unapproved leaves)
            _log.error("Nothing is sent: %s", type(error).__name__)
            raise NoApproval(error) from None

    def _config(self, request: Fields) -> TrainConfig:
        wire.check(request, self.request_schema)
        scalars = request.scalars
        if scalars["plan"] != self._plan.digest():
            raise Refused("The request belongs to another device plan than the one this device agreed to.")
        number = int(scalars["round"])
        seed = device_seed(int(scalars["seed"]), self._index, number)
        rates = float(scalars["learning_rate"]), float(scalars["memory_learning_rate"])
        return TrainConfig(number, seed, int(scalars["steps"]), int(scalars["batch"]), *rates)

    def _report(self, error: Exception) -> None:
        # Only the class is logged: an error's text may quote a record.
        _log.warning("A round gave no update: %s", type(error).__name__)
        if self._failed:
            self._failed(error)
