"""The server's optimisers against torch's, one step at a time."""

import math
from typing import Any

import numpy as np
import pytest

from fedmem.errors import UsageError, VerificationFailed
from fedmem.federation import server_step
from fedmem.federation.server_step import StepSettings

torch = pytest.importorskip("torch")

STEPS = 12
GENERATOR = np.random.default_rng(0)
START = {"w": GENERATOR.normal(size=(5, 3)).astype(np.float32), "b": GENERATOR.normal(size=4).astype(np.float32)}
MEANS = [{n: (0.1 * GENERATOR.normal(size=v.shape)).astype(np.float32) for n, v in START.items()} for _ in range(STEPS)]


def ours(settings: StepSettings) -> list[dict[str, np.ndarray]]:
    params, state, seen = START, server_step.initial_state(START, settings), []
    for mean in MEANS:
        params, state = server_step.apply_step(params, state, mean, settings)
        seen.append(params)
    return seen


def theirs(optimiser: Any, before: Any = lambda optimiser, step: None) -> list[dict[str, np.ndarray]]:
    tensors = {name: torch.nn.Parameter(torch.tensor(value, dtype=torch.float64)) for name, value in START.items()}
    chosen, seen = optimiser(tensors.values()), []
    for step, mean in enumerate(MEANS, 1):
        for name, tensor in tensors.items():
            # The mean update is minus the gradient.
            tensor.grad = -torch.tensor(mean[name], dtype=torch.float64)
        before(chosen, step)
        chosen.step()
        seen.append({name: tensor.detach().numpy().copy() for name, tensor in tensors.items()})
    return seen


def close(got: list[dict[str, np.ndarray]], want: list[dict[str, np.ndarray]], tolerance: float = 1e-5) -> bool:
    return all(np.allclose(g[n], w[n], rtol=tolerance, atol=1e-6) for g, w in zip(got, want, strict=True) for n in g)


def test_fedavg_is_plain_descent() -> None:
    want = theirs(lambda p: torch.optim.SGD(p, lr=0.7))
    assert close(ours(StepSettings("fedavg", rate=0.7)), want)


def test_diloco_is_nesterov_momentum() -> None:
    want = theirs(lambda p: torch.optim.SGD(p, lr=0.7, momentum=0.9, nesterov=True))
    assert close(ours(StepSettings("diloco", rate=0.7, momentum=0.9)), want)
    heavy_ball = theirs(lambda p: torch.optim.SGD(p, lr=0.7, momentum=0.9))
    assert not close(ours(StepSettings("diloco", rate=0.7, momentum=0.9)), heavy_ball)


def test_fedadam_is_adam_without_bias_correction() -> None:
    """torch corrects the bias by the step's number: with rate and epsilon undone by it, both are Algorithm 2."""
    rate, one, two, floor = 0.05, 0.9, 0.95, 1e-2

    def before(optimiser: Any, step: int) -> None:
        group, undo = optimiser.param_groups[0], math.sqrt(1 - two**step)
        group["lr"], group["eps"] = rate * (1 - one**step) / undo, floor / undo
        if step == 1:
            for tensor in group["params"]:
                empty, full = torch.zeros_like(tensor), torch.full_like(tensor, floor**2)
                optimiser.state[tensor] = {"step": torch.tensor(0.0), "exp_avg": empty, "exp_avg_sq": full}

    want = theirs(lambda p: torch.optim.Adam(p, lr=rate, betas=(one, two)), before)
    assert close(ours(StepSettings("fedadam", rate, one, two, floor)), want)
    assert not close(ours(StepSettings("fedadam", rate, one, two, 2 * floor)), want)


@pytest.mark.parametrize("optimiser", server_step.OPTIMISERS)
def test_a_step_changes_nothing_in_place_and_stays_in_float32(optimiser: str) -> None:
    settings = StepSettings(optimiser, rate=0.3)
    state = server_step.initial_state(START, settings)
    before = {name: value.copy() for name, value in (START | state).items()}
    params, after = server_step.apply_step(START, state, MEANS[0], settings)
    assert all((before[name] == value).all() for name, value in (START | state).items())
    assert {array.dtype for array in (params | after).values()} == {np.dtype(np.float32)}
    assert after.keys() == state.keys()


@pytest.mark.parametrize("optimiser", server_step.OPTIMISERS)
def test_the_state_is_all_there_is_to_keep(optimiser: str) -> None:
    settings = StepSettings(optimiser, rate=0.3)
    params, state = START, server_step.initial_state(START, settings)
    for mean in MEANS:
        # What a restart does: only the state crosses, as bytes.
        state = {name: np.frombuffer(a.tobytes(), np.float32).reshape(a.shape) for name, a in state.items()}
        params, state = server_step.apply_step(params, server_step.check_state(state, params, settings), mean, settings)
    assert all(params[name].tobytes() == ours(settings)[-1][name].tobytes() for name in params)


def test_the_state_of_another_optimiser_is_refused() -> None:
    adam = server_step.initial_state(START, StepSettings("fedadam"))
    for settings in (StepSettings("fedavg"), StepSettings("diloco")):
        with pytest.raises(VerificationFailed):
            server_step.check_state(adam, START, settings)
    with pytest.raises(VerificationFailed):
        server_step.check_state({"momentum/w": START["w"]}, START, StepSettings("diloco"))


@pytest.mark.parametrize(
    "bad",
    [
        {"optimiser": "sgd"}, {"rate": math.nan}, {"rate": -1.0}, {"momentum": 1.0}, {"momentum": -0.1},
        {"second_momentum": 1.0}, {"second_momentum": math.nan}, {"adaptivity": 0.0}, {"adaptivity": math.inf},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        StepSettings(**bad)
