"""The coordinator's step on the mean update of a round: FedAvg, FedAdam, or DiLoCo's outer step; pure functions.

Invariants
- New parameters and new state are a function of (parameters, state, mean, settings). Nothing else is kept.
- State is float32 arrays by name, so a checkpoint holds all of it and a resumed run goes on with the same bytes (I9).
- A step reads the noisy mean and nothing else of a round, so it costs no privacy (Dwork and Roth 2014, Prop. 2.1).

| optimiser | step, with mean update d, rate η | source |
|---|---|---|
| fedavg | x + η d | McMahan et al. 2017 |
| fedadam | m ← β₁m + (1-β₁)d; v ← β₂v + (1-β₂)d²; x + η m / (√v + τ), v₀ = τ² | Reddi et al. 2021, Alg. 2 |
| diloco | b ← μb + d; x + η (d + μb), Nesterov | Douillard et al. 2023, with AdamW on the device |

DiLoCo's workers keep their inner AdamW moments from round to round. A device here starts each round with new moments,
for three reasons: it keeps nothing between rounds (its part of Flower's context stays empty), the cohort changes from
round to round, and an erasure would have to erase kept moments too. The cost is in the first steps of each round, where
Adam's bias correction compensates for the short history.

>>> import numpy as np
>>> settings = StepSettings("diloco", rate=0.5, momentum=0.5)
>>> mean = {"w": np.ones(1, np.float32)}
>>> params, state = apply_step({"w": np.zeros(1, np.float32)}, initial_state(mean, settings), mean, settings)
>>> float(params["w"][0]), sorted(state)
(0.75, ['momentum/w'])
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmem.errors import UsageError, VerificationFailed
from fedmem.federation.wire import Params

State = Params
OPTIMISERS = ("fedavg", "fedadam", "diloco")


@dataclass(frozen=True)
class StepSettings:
    """Public settings of the server's step.

    | field | meaning | range |
    |---|---|---|
    | optimiser | fedavg, fedadam or diloco | |
    | rate | η | [0, inf) |
    | momentum | β₁ (fedadam) or μ (diloco) | [0, 1) |
    | second_momentum | β₂ | [0, 1) |
    | adaptivity | τ | (0, inf) |
    """

    optimiser: str = "fedavg"
    rate: float = 1.0
    momentum: float = 0.9
    second_momentum: float = 0.99
    adaptivity: float = 1e-3

    def __post_init__(self) -> None:
        if self.optimiser not in OPTIMISERS:
            raise UsageError(f"There is no server optimiser of that name; choose one of {', '.join(OPTIMISERS)}.")
        decays = all(0 <= decay < 1 for decay in (self.momentum, self.second_momentum))
        if not (decays and 0 < self.adaptivity < math.inf and 0 <= self.rate < math.inf):
            raise UsageError("The server's rate is finite and not negative, its decays in [0, 1), its adaptivity > 0.")


def initial_state(params: Params, settings: StepSettings) -> State:
    """Return the state before the first round.

    Args:
        params: the federated parameters; only names and shapes count.
        settings: the settings of the server's step.
    """
    if settings.optimiser == "fedavg":
        return {}
    momentum = {f"momentum/{name}": np.zeros_like(value, np.float32) for name, value in params.items()}
    if settings.optimiser == "diloco":
        return momentum
    floor = np.float32(settings.adaptivity**2)
    return momentum | {f"second/{name}": np.full(value.shape, floor, np.float32) for name, value in params.items()}


def check_state(state: State, params: Params, settings: StepSettings) -> State:
    """Return `state` if it belongs to these settings.

    Args:
        state: the state of a checkpoint.
        params: the federated parameters; only names and shapes count.
        settings: the settings of the server's step.

    Raises:
        VerificationFailed: the state belongs to another optimiser.
    """
    expected = initial_state(params, settings)
    if {n: a.shape for n, a in state.items()} != {n: a.shape for n, a in expected.items()}:
        raise VerificationFailed("The checkpoint holds the state of another server optimiser; resume with that one.")
    return {name: np.asarray(state[name], np.float32) for name in expected}


def apply_step(params: Params, state: State, mean: Params, settings: StepSettings) -> tuple[Params, State]:
    """Return (parameters, state) after a round with the mean update `mean`; float32, nothing is changed in place.

    Args:
        params: parameters before the round.
        state: server state before the round.
        mean: mean update of the round, of the shapes of `params`.
        settings: the settings of the server's step.
    """
    chosen = {"fedavg": _fedavg, "fedadam": _fedadam, "diloco": _diloco}[settings.optimiser]
    return chosen(params, state, mean, settings)


def _fedavg(params: Params, state: State, mean: Params, settings: StepSettings) -> tuple[Params, State]:
    return {name: _float32(value + settings.rate * mean[name]) for name, value in params.items()}, state


def _fedadam(params: Params, state: State, mean: Params, settings: StepSettings) -> tuple[Params, State]:
    beta1, beta2, rate = settings.momentum, settings.second_momentum, settings.rate
    new_params, new_state = Params(), State()
    for name, value in params.items():
        first = _float32(beta1 * state[f"momentum/{name}"] + (1 - beta1) * mean[name])
        second = _float32(beta2 * state[f"second/{name}"] + (1 - beta2) * np.square(mean[name]))
        new_params[name] = _float32(value + rate * first / (np.sqrt(second) + settings.adaptivity))
        new_state |= {f"momentum/{name}": first, f"second/{name}": second}
    return new_params, new_state


def _diloco(params: Params, state: State, mean: Params, settings: StepSettings) -> tuple[Params, State]:
    rate, decay = settings.rate, settings.momentum
    new_params, new_state = Params(), State()
    for name, value in params.items():
        momentum = _float32(decay * state[f"momentum/{name}"] + mean[name])
        new_params[name] = _float32(value + rate * (mean[name] + decay * momentum))
        new_state[f"momentum/{name}"] = momentum
    return new_params, new_state


def _float32(values: NDArray[np.floating]) -> NDArray[np.float32]:
    # Arithmetic with Python's floats stays in float32, so nothing is copied; this call is for the type checker.
    return np.asarray(values, np.float32)
