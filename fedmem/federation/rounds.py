"""The coordinator of a federation as a pure state machine, without clock, file, socket or Flower.

Invariants
- idle → open → spent → idle. A round is closed or aborted once, and only with the proof that its spend is durable (I6).
- Time is an argument. A reply counts if it arrives by the deadline, comes from the cohort of the open round, is the
  first of its node, and has exactly the fields of the schema. Its norm is clipped again here. Any other reply is
  refused and changes nothing.
- The order of replies has no effect. A device that does not reply affects nothing but its own contribution.
- New parameters and new server state depend on (old ones, plan, settings, noise stream, set of counted replies) alone.
- An aborted round leaves parameters and state unchanged. Its number and its spend are used up nevertheless.

>>> import numpy as np
>>> plan = DevicePlan(population=2, rounds=1, unsafe_no_dp=True, unsafe_reason="an example")
>>> coordinator = Coordinator({"w": np.zeros(2, np.float32)}, plan, noise=None)
>>> coordinator.open([7, 8]).cohort
(7, 8)
>>> coordinator.accept(7, 1, wire.Fields({"w": np.array([2**22, 0], np.int32)}), now=1.0)
True
>>> coordinator.spend()["round"]
1
>>> coordinator.close(Durable(1))["w"].tolist()
[0.25, 0.0]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedmem.errors import Refused, RemoteError, UsageError
from fedmem.federation import device_dp, fixedpoint, server_step, wire
from fedmem.federation.aggregate import Summed, Trimmed
from fedmem.federation.cohorts import Noise
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.server_step import State, StepSettings
from fedmem.federation.wire import Fields, Params
from fedmem.privacy.rounded_gaussian import MECHANISM

TRIM_TOO_LARGE = (
    "A trimmed mean keeps every reply, so its cohort has at most {} devices. Draw a smaller one, or set trim = 0."
)


class RoundAborted(RemoteError):
    """The open round has too few counted replies to close. Abort it: its spend stays."""


@dataclass(frozen=True)
class RoundSettings:
    """Public settings of every round; they change no privacy.

    | field | meaning |
    |---|---|
    | seed … memory_learning_rate | settings of a device's training; `server_learning_rate` is the server's |
    | first_steps | local steps of the first round; they double from round to round up to `steps`. 0: always `steps` |
    | optimiser, momentum, second_momentum, adaptivity | the server's step: `server_step.StepSettings` |
    | deadline | seconds from the opening of a round, in the caller's time; later replies are not counted |
    | minimum | connected devices that a round needs to open; without noise also the replies that it needs to close |
    | trim | share of replies that is cut at either end of each coordinate; 0: the plain mean. Only without noise |
    | trim_cohort | largest cohort of a trimmed mean, which keeps every reply until the round ends |

    With noise, `minimum` does not apply to replies. Their number depends on the secret sample, and readers can see an
    abort: it would reveal something about the sample.
    """

    seed: int = 0
    steps: int = 1
    batch: int = 1
    learning_rate: float = 0.0
    server_learning_rate: float = 1.0
    memory_learning_rate: float = 0.0
    optimiser: str = "fedavg"
    momentum: float = 0.9
    second_momentum: float = 0.99
    adaptivity: float = 1e-3
    deadline: float = 3600.0
    minimum: int = 1
    trim: float = 0.0
    trim_cohort: int = 64
    first_steps: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.deadline < float("inf") and self.minimum >= 1 and 0 <= self.trim < 0.5 and self.trim_cohort):
            raise UsageError("A round needs a finite deadline above 0, a minimum from 1, and a trim in [0, 0.5).")
        if not 0 <= self.first_steps <= self.steps:
            raise UsageError("Local steps grow from first_steps to steps: give first_steps from 0 to steps.")
        _ = self.step

    @property
    def moves_devices(self) -> bool:
        """True if the training of a device with these settings can move a parameter."""
        return self.steps > 0 and max(self.learning_rate, self.memory_learning_rate) > 0

    @property
    def step(self) -> StepSettings:
        """The settings of the server's step."""
        rate, decays = self.server_learning_rate, (self.momentum, self.second_momentum)
        return StepSettings(self.optimiser, rate, *decays, self.adaptivity)


def local_steps(number: int, steps: int, first: int = 0) -> int:
    """Return the local steps of round `number`, from 1: `first`, doubled each round up to `steps`.

    With `first` 0, every round has `steps`. From a random start the parameters of devices diverge after few steps, and
    the mean of diverged devices is worse than each of them. Later rounds may have more local steps (Gu et al. 2024, §2,
    for a falling rate).

    Args:
        number: number of the round, from 1.
        steps: greatest number of local steps.
        first: local steps of round 1; 0 for `steps` in every round.
    """
    return min(steps, first << min(number - 1, steps.bit_length())) if first else steps


@dataclass(frozen=True)
class Round:
    """An open round.

    Attributes:
        number: number of the round, from 1.
        cohort: node ids of the devices that are asked, ascending.
        request: the request; it is the same for every member.
        deadline: time in the caller's seconds after which no reply counts.
    """

    number: int
    cohort: tuple[int, ...]
    request: Fields
    deadline: float


@dataclass(frozen=True)
class Durable:
    """The proof that the spend of round `number` is on disk. Only the journal makes it.

    Attributes:
        number: number of the round, from 1.
    """

    number: int


class Coordinator:
    """The state machine: it holds the federated parameters and the server's state between rounds.

    Args:
        params: the federated parameters, float32 arrays by name.
        noise: a `PrivacyStream`; None only where the plan neither samples nor adds noise.
        finished_rounds: number of rounds that are over, when a federation is resumed.

    Attributes:
        reply_schema: the schema of every reply.

    Raises Refused where the plan needs a stream and `noise` is None, and for a trimmed mean with noise (`aggregate`).
    """

    def __init__(
        self,
        params: Params,
        plan: DevicePlan,
        noise: Noise | None,
        settings: RoundSettings | None = None,
        finished_rounds: int = 0,
    ) -> None:
        if noise is None and (plan.noise_multiplier > 0 or plan.sampled):
            raise Refused("This plan samples or adds noise, so the coordinator needs a privacy stream.")
        self.params = {name: np.asarray(params[name], np.float32) for name in sorted(params)}
        self.plan, self.settings, self.finished_rounds = plan, settings or RoundSettings(), finished_rounds
        if self.settings.trim and plan.noise_multiplier > 0:
            raise Refused(
                "The clip norm does not bound a trimmed mean, so noise protects nothing there; use one of them."
            )
        self.state = server_step.initial_state(self.params, self.settings.step)
        self._noise = noise
        self._shapes = wire.shapes_of(self.params)
        self._request = wire.anchor_request(self._shapes)
        self.reply_schema = wire.anchor_reply(self._shapes, plan.clip)
        self._round: Round | None = None
        self._replies: Summed | Trimmed = Summed(self._shapes)
        self._cohort: frozenset[int] = frozenset()
        self._counted: set[int] = set()

    def restore(self, state: State) -> None:
        """Continue with the server's state from a checkpoint.

        Args:
            state: server state, float32 arrays by name.

        Raises:
            VerificationFailed: the state belongs to another optimiser.
        """
        self.state = server_step.check_state(state, self.params, self.settings.step)

    def open(self, nodes: Sequence[int], now: float = 0.0) -> Round:
        """Open the next round for the connected `nodes`, and return it.

        Args:
            nodes: ids of the connected devices.
            now: the caller's time in seconds; the deadline is counted from it.

        Raises:
            BudgetExceeded: the plan allows no further round.
            Refused: a round is open, too many or too few devices are connected, or the cohort is larger than
                `trim_cohort`. Nothing has been sent then.
        """
        if self._round is not None:
            raise Refused(f"Round {self._round.number} is still open; close it first.")
        device_dp.check_budget(self.plan, self.finished_rounds + 1)
        number, connected = self.finished_rounds + 1, sorted(set(nodes))
        if len(connected) > self.plan.population:
            raise Refused("More devices are connected than the plan's population declares; nothing was sent.")
        if len(connected) < self.settings.minimum:
            raise Refused("Fewer devices are connected than a round needs; nothing was sent. Wait for more of them.")
        members = device_dp.cohort(connected, self.plan, self._stream(number, "cohort"))
        if self.settings.trim and len(members) > self.settings.trim_cohort:
            raise Refused(TRIM_TOO_LARGE.format(self.settings.trim_cohort))
        new_round = Round(number, tuple(members), self._make_request(number), now + self.settings.deadline)
        self._replies = Trimmed(self.settings.trim, self.plan.clip) if self.settings.trim else Summed(self._shapes)
        self._cohort, self._counted, self._round = frozenset(members), set(), new_round
        return new_round

    def _make_request(self, number: int) -> Fields:
        settings = self.settings
        scalars: dict[str, wire.Scalar] = {
            "protocol": wire.PROTOCOL,
            "round": number,
            "seed": settings.seed,
            "steps": local_steps(number, settings.steps, settings.first_steps),
            "batch": settings.batch,
            "learning_rate": float(settings.learning_rate),
            "memory_learning_rate": float(settings.memory_learning_rate),
            "plan": self.plan.digest(),
        }
        return wire.check(Fields(wire.pack(self.params), scalars), self._request)

    def _stream(self, number: int, use: str) -> Any:
        return self._noise.substream(f"round-{number}/{use}".encode()) if self._noise else None

    def accept(self, node: int, number: int, fields: Fields, now: float) -> bool:
        """Count one reply that arrived at `now`.

        Args:
            node: id of the device that replied.
            number: the round that the reply names.

        Returns:
            True if the reply moves a coordinate, False for zeros.

        Raises BoundaryViolation or Refused; nothing has changed then.
        """
        current = self._current()
        if number != current.number:
            raise Refused("A reply belongs to another round; it was not counted.")
        if not now <= current.deadline:
            raise Refused("A reply comes after the round's deadline; it was not counted.")
        if node not in self._cohort:
            raise Refused("A reply comes from a node outside the round's cohort; it was not counted.")
        if node in self._counted:
            raise Refused("A node replied twice in one round; only the first reply counts.")
        wire.check(fields, self.reply_schema)
        update = {name: array.view(np.int32) for name, array in fields.arrays.items()}
        self._replies.add(fixedpoint.clip_grid(update, self.plan.clip))
        self._counted.add(node)
        return any(array.any() for array in update.values())

    def spend(self) -> dict[str, Any]:
        """Return the privacy event of the open round; it must be durable before `close`. Raises Refused."""
        event = device_dp.spend(self.plan, rounds=1)
        body = {"round": self._current().number, "spend": event.to_dict(), "plan": self.plan.to_dict()}
        # A round that was spent for noise of another kind is never closed with this one: two noises cancel each other.
        return body | ({"noise": MECHANISM} if self.plan.noise_multiplier else {})

    @property
    def has_too_few_replies(self) -> bool:
        """True if the open round has too few replies to close. Never with noise: an abort would reveal their number."""
        return self.plan.noise_multiplier == 0 and self.reply_count < self.settings.minimum

    def close(self, proof: Durable) -> Params:
        """Close the open round: apply the server's step to the mean of the updates, and return the new parameters.

        Args:
            proof: the proof that the round's spend is durable.

        Returns:
            The new parameters, float32 arrays by name.

        Raises:
            Refused: `proof` is not for this round. The event must be durable before the result exists (I6).
            RoundAborted: too few replies were counted; the round is still open.
        """
        current = self._proven(proof)
        if self.has_too_few_replies:
            raise RoundAborted(f"Round {current.number} has too few replies to close; abort it.")
        mean = self._mean(current.number)
        self.params, self.state = server_step.apply_step(self.params, self.state, mean, self.settings.step)
        self.finished_rounds, self._round = current.number, None
        return self.params

    def abort(self, proof: Durable) -> None:
        """End the open round without a result. Its spend stays.

        Args:
            proof: the proof that the round's spend is durable.

        Raises:
            Refused: `proof` is not for this round.
        """
        self.finished_rounds, self._round = self._proven(proof).number, None

    def _proven(self, proof: Durable) -> Round:
        current = self._current()
        if type(proof) is not Durable or proof.number != current.number:
            raise Refused("The privacy event of this round is not on disk; the round stays open.")
        return current

    def _mean(self, number: int) -> Params:
        if isinstance(self._replies, Trimmed):
            return self._replies.mean(self._shapes)
        return self._replies.mean(self.plan, self._stream(number, "noise"))

    @property
    def reply_count(self) -> int:
        """The number of replies counted in the open round, or else in the last one."""
        return len(self._counted)

    def _current(self) -> Round:
        if self._round is None:
            raise Refused("No round is open.")
        return self._round
