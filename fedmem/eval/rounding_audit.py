"""Run the rounding attack on all that is released: updates, the final block, and federated parameters.

Each trial tosses a coin, lets one record or device take part or not, runs the installed mechanism, and guesses the coin
from last bits. Then the same trials run with a planted bug, float32 noise on a float32 sum, which the attack must find.

Invariants
- The mechanism is `train_block`, and for a federation its sum, its noise and the server's step. Nothing is replaced,
  except by the planted bug inside its `with`.
- Everyone else takes part in both cases with one and the same content, so the attacker knows both sums.
- Settings that cost no privacy are those that keep the most bits: see `KEEPING`.
- No vault is opened. Coins and noise come from the given stream.

    run_rounding(AuditSetup.new(500), stream)["updates"]["correct"]  # about 12 of 24
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedmem.eval.one_run import AuditSetup, CanaryTrace, watched
from fedmem.eval.planted import replace_attribute
from fedmem.eval.rounding import Attack, Cells, Floats, ReleasedValues, attack, interval, p_value
from fedmem.federation import device_dp, fixedpoint
from fedmem.federation.aggregate import Summed
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.server_step import OPTIMISERS, StepSettings, apply_step, initial_state
from fedmem.privacy import dpsgd
from fedmem.privacy.clip import CellSum
from fedmem.privacy.dpsgd import Optimiser, State, clipped_sum, start_adam, train_block
from fedmem.privacy.gradients import PrivateSequences, RuntimeOptions, frozen, per_record
from fedmem.privacy.grid import Grid
from fedmem.privacy.plan import DELTA, PrivacyPlan
from fedmem.privacy.stream import PrivacyStream

EPSILONS, TRIALS = (0.5, 2.0, 8.0), 24
CONFIDENCE = 0.99
"""Confidence of the interval of each place."""
ALARM = 1e-4
"""A p-value below this is no accident: of coins, 22 right guesses of 24."""
STEPS, CLIP, DIVISOR = 2, 0.01, 65.0
ROUNDING = 8.0  # units in the last place: twice what the few operations of a step round
VALUES = 3072
RECORDS, DEVICES = 0.05, 0.5
"""How many others take part, so that the sum is about this share of the noise: float noise tells most where sum and
noise cancel, which a sum far above or far below the noise does not."""
_FINER = 2.0**-14  # of a cell: a float32 sum that was never on the grid
KEEPING = Optimiser(lr=1e-2, final=1e8, beta1=0.0)
"""Adam is post-processing with public settings. Without momentum, and with a last step far greater than the block, the
released block keeps the last bits of its last update. The default settings round most of them away."""


Trial = Callable[[float, bool, PrivacyStream], dict[str, Attack]]
"""`trial(epsilon, is_included, stream)` runs the mechanism, and returns attacks by the name of their place."""


def run_rounding(
    setup: AuditSetup, stream: PrivacyStream, epsilons: Sequence[float] = EPSILONS, trials: int = TRIALS
) -> dict[str, dict[str, Any]]:
    """Run the attack at every place, on the mechanism as it is and with float noise.

    Args:
        setup: anchor, block and canaries of the trainings.
        stream: decides coins and noise.
        epsilons: the claimed epsilons; trials take turns.
        trials: number of trials of each place, and of each server step.

    Returns:
        For `updates`, `final_block` and `federated`: `correct` guesses, `out_of`, the `interval` of the chance of a
        right guess at CONFIDENCE, `p_value` of so many by chance, `impossible` (values that no noise gives), and
        `planted_correct`, `planted_caught` for as many trials with float noise. `federated` adds up the server's steps;
        its bug is caught if it is caught under each.
    """

    def train(epsilon: float, is_included: bool, draws: PrivacyStream) -> dict[str, Attack]:
        return attack_training(setup, epsilon, is_included, draws)

    places = run_trials(train, float_trainings, stream.substream(b"training"), epsilons, trials)
    rounds = [
        run_trials(
            partial(attack_federation, name), float_federations, stream.substream(name.encode()), epsilons, trials
        )
        for name in OPTIMISERS
    ]
    return places | {"federated": _joined([places["federated"] for places in rounds])}


def is_failed(place: dict[str, Any]) -> bool:
    """Return True if last bits told who took part, or a released value was impossible.

    Args:
        place: one entry of the result of `run_rounding`.
    """
    return bool(place["p_value"] < ALARM or place["impossible"])


def run_trials(
    trial: Trial,
    planted: Callable[[], AbstractContextManager[None]],
    stream: PrivacyStream,
    epsilons: Sequence[float],
    trials: int,
) -> dict[str, dict[str, Any]]:
    """Run trials without and with a planted bug, and count right guesses by place.

    Args:
        trial: runs and attacks the mechanism.
        planted: gives the context in which the mechanism has the bug.
        stream: decides coins and noise.
        epsilons: the claimed epsilons; trials take turns.
        trials: number of trials, without the bug and with it.
    """
    coins = stream.substream(b"coins").bernoulli(2 * trials, 0.5).tolist()
    attacks = list[dict[str, Attack]]()
    for number, coin in enumerate(coins):
        with planted() if number >= trials else nullcontext():
            attacks.append(trial(epsilons[number % len(epsilons)], coin, stream.substream(b"trial-%d" % number)))
    return {name: _counts([places[name] for places in attacks], coins) for name in attacks[0]}


def _counts(attacks: Sequence[Attack], coins: Sequence[bool]) -> dict[str, Any]:
    """Return the figures of one place; the second half of the attacks had the bug."""
    trials, is_right = len(coins) // 2, [attack.guess == coin for attack, coin in zip(attacks, coins, strict=True)]
    impossible = sum(attack.impossible for attack in attacks[:trials])
    return _figures(sum(is_right[:trials]), trials, impossible, sum(is_right[trials:]))


def _figures(correct: int, out_of: int, impossible: int, planted_correct: int) -> dict[str, Any]:
    return {
        "correct": correct,
        "out_of": out_of,
        "interval": interval(correct, out_of, CONFIDENCE),
        "p_value": p_value(correct, out_of),
        "impossible": impossible,
        "planted_correct": planted_correct,
        "planted_caught": p_value(planted_correct, out_of) < ALARM,
    }


def _joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    counts = ("correct", "out_of", "impossible", "planted_correct")
    is_caught = all(part["planted_caught"] for part in parts)
    return _figures(*(sum(part[name] for part in parts) for name in counts)) | {"planted_caught": is_caught}


@lru_cache(maxsize=16)
def _plan(epsilon: float, steps: int) -> PrivacyPlan:
    """Return a plan with every record in every step, so that the attacker knows the sums."""
    return PrivacyPlan(1.0, steps, CLIP, 0.0, DIVISOR, DELTA, 10_000).calibrate(epsilon)


def attack_training(setup: AuditSetup, epsilon: float, is_included: bool, stream: PrivacyStream) -> dict[str, Attack]:
    """Train a block with or without one record, and attack its updates and the final block.

    The attacker of the final block knows every step but the last, and not the last update.

    Args:
        setup: anchor, block and canaries. Canary 1 is the record, and all other records are canary 0.
        epsilon: the claimed epsilon.
        is_included: True to train on the record.
        stream: decides the noise.

    Returns:
        The attacks on `updates` and `final_block`.
    """
    plan = _plan(epsilon, STEPS)
    others = _others(RECORDS, plan.noise_multiplier, setup.spec.fetch_size)
    grid = plan.grid(setup.spec.fetch_size)
    scale, std = grid.spacing / plan.divisor, grid.std(plan.noise_multiplier)
    trace, before = _train(setup, plan, [0] * others + [1] * is_included, stream)
    parts_S = [_parts(setup, block_X, grid) for block_X in trace.blocks_SX]
    sums_S = [(others * other_X, others * other_X + record_X) for other_X, record_X in parts_S]
    without_X, with_X = (np.concatenate(sums) for sums in zip(*sums_S, strict=True))
    update_X, end_X = torch.cat(trace.updates_SX).numpy(), -trace.end_X.numpy()
    error_X = _error(np.maximum(np.abs(end_X), np.abs(before.block_X.numpy())))
    updates = ReleasedValues(update_X, lambda values_X: values_X, np.zeros_like(update_X), scale, std)
    block = ReleasedValues(end_X, _last_step(before, plan), error_X, scale, std)
    return {"updates": attack(updates, (without_X, with_X)), "final_block": attack(block, sums_S[-1])}


def _error(magnitudes_X: Floats) -> Floats:
    return np.asarray(ROUNDING * np.spacing(magnitudes_X), np.float32)


def _others(share: float, noise_multiplier: float, values: int) -> int:
    return max(2, round(share * noise_multiplier * math.sqrt(values)))


def _train(
    setup: AuditSetup, plan: PrivacyPlan, canaries: Sequence[int], stream: PrivacyStream
) -> tuple[CanaryTrace, State]:
    """Return what a training on these canaries releases, and its state before the last step."""
    states = list[State]()

    def keep(state: State) -> None:
        states.append(State(state.step, state.block_X.clone(), state.first_X.clone(), state.second_X.clone()))

    data = PrivateSequences(setup.tokens_MT[canaries], np.arange(len(canaries)), len(canaries))
    with watched() as trace:
        trace.end_X = train_block(
            setup.model, setup.memory, setup.spec, setup.start_X, data, plan, stream, optimiser=KEEPING, watch=keep
        )
    return trace, states[-2]


def _parts(setup: AuditSetup, block_X: Tensor, grid: Grid) -> tuple[Cells, Cells]:
    """Return the cells of canary 0 and of canary 1 in a sum."""
    data = PrivateSequences(setup.tokens_MT[:2], np.arange(2), 2)
    with (
        frozen(setup.model),
        per_record(setup.model, setup.memory, setup.spec, data, RuntimeOptions()) as gradients,
    ):
        other_X, record_X = (
            clipped_sum(gradients, block_X, data, np.arange(2) == number, grid).cells_X.numpy() for number in (0, 1)
        )
    return other_X, record_X


def _last_step(before: State, plan: PrivacyPlan) -> Callable[[Floats], Floats]:
    """Return the negated block after the last step as a function of the last update."""

    def post(update_X: Floats) -> Floats:
        block = nn.Parameter(before.block_X.clone())
        adam = start_adam(block, KEEPING, State(before.step, before.block_X, before.first_X, before.second_X.clone()))
        adam.param_groups[0]["lr"] = KEEPING.rate(before.step, plan.steps)
        block.grad = torch.from_numpy(update_X)
        adam.step()
        values_X: Floats = -block.detach().numpy()
        return values_X

    return post


def attack_federation(optimiser: str, epsilon: float, is_included: bool, stream: PrivacyStream) -> dict[str, Attack]:
    """Run a round of a federation with or without one device, and attack the parameters after the server's step.

    Parameters start from zero, as the last rows of new blocks do, so they keep the bits of the mean.

    Args:
        optimiser: the server's step, a name in OPTIMISERS.
        epsilon: the claimed epsilon.
        is_included: True if the device sends its update; else it sends zeros.
        stream: decides updates and noise.

    Returns:
        The attack on `federated`.
    """
    sigma = _plan(epsilon, 1).noise_multiplier
    count = _others(DEVICES, sigma, VALUES)
    plan, settings = DevicePlan(count + 1, noise_multiplier=sigma), StepSettings(optimiser)
    other_X, device_X = (_update(stream.substream(name), plan) for name in (b"other", b"device"))
    summed, start = Summed({"w": (VALUES,)}), {"w": np.zeros(VALUES, np.float32)}
    for update_X in [other_X] * count + [device_X] * is_included:
        summed.add({"w": update_X})
    mean, state = summed.mean(plan, stream.substream(b"noise")), initial_state(start, settings)

    def post(mean_X: Floats) -> Floats:
        return np.asarray(apply_step(start, state, {"w": mean_X}, settings)[0]["w"])

    cell, released_X, others_X = fixedpoint.grid_step(plan.clip), post(mean["w"]), count * other_X.astype(np.int64)
    error_X = _error(np.abs(released_X))
    release = ReleasedValues(released_X, post, error_X, cell / plan.expected_cohort, sigma * plan.clip / cell)
    return {"federated": attack(release, (others_X, others_X + device_X))}


def _update(stream: PrivacyStream, plan: DevicePlan) -> Any:
    """Return an update in cells, of norm `clip`."""
    values_X = np.random.default_rng(int(stream.words(1)[0])).normal(0, 3 * plan.clip / VALUES**0.5, VALUES)
    cells = fixedpoint.quantise(values_X.astype(np.float32), fixedpoint.grid_step(plan.clip))
    return fixedpoint.clip_grid({"w": cells}, plan.clip)["w"]


@contextmanager
def float_trainings() -> Iterator[None]:
    """Put float32 noise on float32 sums in every training inside the `with`: the planted bug."""
    original = PrivacyPlan.grid

    def finer(plan: PrivacyPlan, values: int) -> Grid:
        grid = original(plan, values)
        return replace(grid, spacing=_FINER * grid.spacing)

    def add_noise(clipped: CellSum, noise_multiplier: float, stream: PrivacyStream) -> Tensor:
        noise_X = _normal(stream, len(clipped.cells_X), clipped.grid.std(noise_multiplier))
        return clipped.cells_X.float() + torch.from_numpy(noise_X)

    with replace_attribute(PrivacyPlan, "grid", finer), replace_attribute(dpsgd, "add_noise", add_noise):
        yield


@contextmanager
def float_federations() -> Iterator[None]:
    """Put float32 noise on float32 sums in every round inside the `with`: the planted bug."""

    def noisy(sums: fixedpoint.Sums, plan: DevicePlan, noise: Any) -> dict[str, Floats]:
        std = plan.noise_multiplier * (plan.clip / fixedpoint.grid_step(plan.clip))
        return {name: total.astype(np.float32) + _normal(noise, total.size, std) for name, total in sums.items()}

    with replace_attribute(device_dp, "_noisy", noisy):
        yield


def _normal(stream: Any, values: int, std: float) -> Floats:
    draws = np.random.default_rng(int(stream.words(1)[0])).standard_normal(values)
    return (std * draws).astype(np.float32)
