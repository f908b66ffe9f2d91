"""A scenario: one TOML file in sims/ that says what a simulated federation is made of.

Invariants
- Every key is known and has its type; a missing or unknown one is a UsageError that names it.
- A scenario is public and frozen: nothing in it is a function of anyone's data.
- Federated rounds without noise must say `unsafe_no_dp = true` and why (DESIGN §7).
"""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

from fedmem.canonical import digest
from fedmem.errors import UsageError


@dataclass(frozen=True)
class Public:
    """Public text and who holds it; shares are parts of the documents in use (`documents` 0: all there are)."""

    devices: int
    coordinator_share: float
    heldout_share: float
    concentration: float
    documents: int = 0


@dataclass(frozen=True)
class Private:
    """One sensitive topic: the devices (by index) that have it, and the records that each of them holds."""

    topic: str
    devices: list[int]
    records: int
    heldout: int


@dataclass(frozen=True)
class Anchor:
    """Preset, vocabulary size, and sequence length in tokens."""

    preset: str
    vocabulary: int
    length: int


@dataclass(frozen=True)
class Bank:
    """Branching of the cluster tree and block width per level."""

    branching: int
    widths: list[int]


@dataclass(frozen=True)
class Phase:
    """Steps of central training; learning rates as in `fedmem.training.loop.Settings`."""

    steps: int
    batch: int
    lr: float
    memory_lr: float = 0.0


@dataclass(frozen=True)
class Federation:
    """Federated rounds: `parts` are trained by devices, `rounds` per release."""

    parts: list[str]
    rounds: int
    releases: int
    steps: int
    batch: int
    lr: float
    memory_lr: float
    server_lr: float
    clip: float
    sampling_rate: float = 1.0
    noise_multiplier: float = 0.0
    delta: float = 1e-5
    epsilon_max: float = 0.0
    unsafe_no_dp: bool = False
    unsafe_reason: str = ""


@dataclass(frozen=True)
class Learning:
    """Private blocks: width, and the public terms of DP-SGD; ε and δ come from the policy's topic."""

    width: int
    record_cap: int
    nominal: int
    sampling_rate: float
    steps: int
    clip: float
    lr: float


@dataclass(frozen=True)
class Scenario:
    """Everything a run is made of."""

    name: str
    about: str
    seed: int
    public: Public
    anchor: Anchor
    bank: Bank
    pretrain: Phase
    cotrain: Phase
    federation: Federation
    learning: Learning
    private: list[Private] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as it stands in `run.json`."""
        return asdict(self)

    def digest(self) -> str:
        """What makes two runs comparable."""
        return digest(self.to_dict())


def folder() -> Path:
    """Where scenarios lie: in the package, or beside it in a checkout."""
    inside = Path(str(resources.files("fedmem") / "sims"))
    return inside if inside.is_dir() else Path(__file__).parents[2] / "sims"


def known() -> list[str]:
    """Names of the scenarios that come with fedmem."""
    return sorted(path.stem for path in folder().glob("*.toml"))


def load(name: str) -> Scenario:
    """Read a scenario by name, or by the path of a TOML file. Raises UsageError."""
    path = Path(name) if name.endswith(".toml") else folder() / f"{name}.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"There is no scenario {name!r}; choose one of {', '.join(known())}, or a path to a TOML file."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"The scenario {path.name} is not valid TOML: {error}.") from error
    return from_dict({"name": path.stem, **data}, path.name)


def from_dict(data: Mapping[str, Any], where: str = "The scenario of this run") -> Scenario:
    """Read a scenario from its JSON or TOML form. Raises UsageError."""
    scenario: Scenario = _read(Scenario, data, where)
    _check(scenario)
    return scenario


def _read(kind: Any, data: Mapping[str, Any], where: str) -> Any:
    hints, names = get_type_hints(kind), {f.name for f in fields(kind)}
    if unknown := sorted(set(data) - names):
        raise UsageError(f"{where} has a key {unknown[0]!r} that no scenario knows; remove it.")
    values = {key: _value(hints[key], value, f"{where}: {key}") for key, value in data.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise UsageError(f"{where} lacks a key: {str(error).split('argument')[-1].strip(': ')}.") from None


def _value(hint: Any, value: Any, where: str) -> Any:
    if hint == list[Private]:
        return [_read(Private, row, where) for row in value]
    if isinstance(value, dict):
        return _read(hint, value, where)
    want = getattr(hint, "__origin__", hint)
    if want is float and type(value) is int:
        return float(value)
    if type(value) is not want:
        raise UsageError(f"{where} must be of type {want.__name__}.")
    return value


def _check(scenario: Scenario) -> None:
    """Refuse what could only fail later, after the training. Raises UsageError."""
    federation, levels = scenario.federation, len(scenario.bank.widths)
    parts = {"anchor", "generic", *(f"level-{n}" for n in range(1, levels + 1))}
    devices = [device for private in scenario.private for device in private.devices]
    noisy = federation.noise_multiplier > 0
    wrong = {
        "federation.parts names something that is not " + ", ".join(sorted(parts)): not set(federation.parts) <= parts,
        "rounds, releases, steps, batches, widths and branching start at 1": min(_counts(scenario)) < 1,
        "a topic names a device that does not exist": any(not 0 <= d < scenario.public.devices for d in devices),
        "a topic has more records than learning.record_cap": any(
            private.records > scenario.learning.record_cap for private in scenario.private
        ),
        "rounds without noise must say unsafe_no_dp = true and give unsafe_reason": not noisy
        and not (federation.unsafe_no_dp and federation.unsafe_reason),
        "unsafe_no_dp = true beside a noise multiplier contradicts itself": noisy and federation.unsafe_no_dp,
    }
    for sentence, found in wrong.items():
        if found:
            raise UsageError(f"{scenario.name}: {sentence}.")


def _counts(scenario: Scenario) -> list[int]:
    f, phases = scenario.federation, (scenario.pretrain, scenario.cotrain, scenario.federation, scenario.learning)
    batches = [scenario.pretrain.batch, scenario.cotrain.batch, f.batch]
    shape = [scenario.public.devices, scenario.bank.branching, *scenario.bank.widths]
    return [f.rounds, f.releases, *batches, *shape, *(phase.steps for phase in phases)]
