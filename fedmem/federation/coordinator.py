"""The coordinator of a federation as a pure state machine: no clock, file, socket or Flower (STYLE, habit 3).

Invariants
- idle → open → spent → idle. A round is closed once, and only with the proof that its spend is durable (I6).
- A reply counts if it comes from the open round's cohort, for the first time, with exactly the schema's fields; its
  norm is clipped again here. Anything else is refused and leaves the sums as they were.
- The sums are int64: neither the order of replies nor a device's silence changes anything but its own part.
- New parameters depend on (old parameters, plan, noise stream, set of counted replies) alone.

>>> import numpy as np
>>> plan = DevicePlan(population=2, rounds=1, unsafe_no_dp=True, unsafe_reason="an example")
>>> c = Coordinator({"w": np.zeros(2, np.float32)}, plan, noise=None)
>>> c.open([7, 8]).cohort
(7, 8)
>>> c.accept(7, 1, wire.Fields({"w": np.array([2**22, 0], np.int32)}))
>>> c.spend()["round"]
1
>>> c.close(Durable(1))["w"].tolist()
[0.25, 0.0]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedmem.errors import Refused
from fedmem.federation import device_dp, fixedpoint, wire
from fedmem.federation.device_dp import DevicePlan, Noise
from fedmem.federation.wire import Fields, Params


@dataclass(frozen=True)
class RoundSettings:
    """Public training settings of every round; they change no privacy."""

    seed: int = 0
    steps: int = 1
    batch: int = 1
    learning_rate: float = 0.0
    server_learning_rate: float = 1.0
    memory_learning_rate: float = 0.0


@dataclass(frozen=True)
class Round:
    """An open round: its number from 1, its cohort, and the one request that every member gets."""

    number: int
    cohort: tuple[int, ...]
    request: Fields


@dataclass(frozen=True)
class Durable:
    """Proof that the spend of round `number` is on disk; made by the journal only."""

    number: int


class Coordinator:
    """Holds the parameters of the federated part between rounds.

    `params`: float32 by name. `noise`: a `PrivacyStream`; None is allowed only where the plan neither samples nor adds
    noise. `done`: rounds already closed, when resuming.
    """

    def __init__(
        self,
        params: Params,
        plan: DevicePlan,
        noise: Noise | None,
        settings: RoundSettings | None = None,
        done: int = 0,
    ) -> None:
        if noise is None and (plan.noise_multiplier > 0 or plan.sampling_rate < 1):
            raise Refused("This plan samples or adds noise, so the coordinator needs a privacy stream.")
        self.params = {name: np.asarray(params[name], np.float32) for name in sorted(params)}
        self.plan, self.settings, self.done = plan, settings or RoundSettings(), done
        self._noise = noise
        self._shapes = wire.shapes_of(self.params)
        self._request = wire.anchor_request(self._shapes)
        self._reply = wire.anchor_reply(self._shapes, plan.clip)
        self._round: Round | None = None
        self._sums = fixedpoint.empty_sums(self._shapes)
        self._counted: set[int] = set()

    def open(self, nodes: Sequence[int]) -> Round:
        """Start the next round over the connected `nodes`. Raises BudgetExceeded before anything is sent."""
        if self._round is not None:
            raise Refused(f"Round {self._round.number} is still open; close it first.")
        device_dp.check_budget(self.plan, self.done + 1)
        if len(set(nodes)) > self.plan.population:
            raise Refused("More devices are connected than the plan's population declares; nothing was sent.")
        number = self.done + 1
        members = device_dp.cohort(sorted(set(nodes)), self.plan, self._stream(number, "cohort"))
        self._sums, self._counted = fixedpoint.empty_sums(self._shapes), set()
        self._round = Round(number, tuple(members), self._make_request(number))
        return self._round

    def _make_request(self, number: int) -> Fields:
        s = self.settings
        scalars: dict[str, wire.Scalar] = {
            "round": number,
            "seed": s.seed,
            "steps": s.steps,
            "batch": s.batch,
            "learning_rate": float(s.learning_rate),
            "memory_learning_rate": float(s.memory_learning_rate),
            "plan": self.plan.digest(),
        }
        return wire.check(Fields(wire.pack(self.params), scalars), self._request)

    def _stream(self, number: int, use: str) -> Any:
        return self._noise.substream(f"round-{number}/{use}".encode()) if self._noise else None

    def accept(self, node: int, number: int, fields: Fields) -> None:
        """Count one reply. Raises BoundaryViolation or Refused, and then nothing has changed."""
        current = self._current()
        if number != current.number:
            raise Refused("A reply belongs to another round; it was not counted.")
        if node not in current.cohort:
            raise Refused("A reply comes from a node outside the round's cohort; it was not counted.")
        if node in self._counted:
            raise Refused("A node replied twice in one round; only the first reply counts.")
        wire.check(fields, self._reply)
        update = {name: array.view(np.int32) for name, array in fields.arrays.items()}
        fixedpoint.add(self._sums, fixedpoint.clip_grid(update, self.plan.clip))
        self._counted.add(node)

    def spend(self) -> dict[str, Any]:
        """The privacy event of the open round, to be made durable before `close`."""
        event = device_dp.spend(self.plan, rounds=1)
        return {"round": self._current().number, "spend": event.to_dict(), "plan": self.plan.to_dict()}

    def close(self, proof: Durable) -> Params:
        """Federated averaging on the noisy mean of the updates; returns the new parameters.

        Raises Refused without the proof for this very round: the event is durable before the result exists (I6).
        """
        current = self._current()
        if type(proof) is not Durable or proof.number != current.number:
            raise Refused("The privacy event of this round is not on disk; the round stays open.")
        mean = device_dp.noisy_mean(self._sums, self.plan, self._stream(current.number, "noise"))
        rate = np.float32(self.settings.server_learning_rate)
        self.params = {name: value + rate * mean[name] for name, value in self.params.items()}
        self.done, self._round = current.number, None
        return self.params

    @property
    def counted(self) -> int:
        """Replies counted in the open round, or in the last one."""
        return len(self._counted)

    def _current(self) -> Round:
        if self._round is None:
            raise Refused("No round is open.")
        return self._round
