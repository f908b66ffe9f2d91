"""A scenario: one TOML file in sims/ that says what a simulated federation is made of.

Invariants
- Every key is known and has its type; a missing or unknown one is a UsageError that names it.
- A scenario is public and frozen: nothing in it is a function of anyone's data.
- Federated rounds without noise must say `unsafe_no_dp = true` and why (DESIGN §7).
- What contradicts itself is a UsageError with a sentence, before anything is trained (`contradictions`).
"""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

from fedmem.canonical import digest
from fedmem.errors import UsageError
from fedmem.sim import contradictions


@dataclass(frozen=True)
class Public:
    """Text for federated training and who holds it; shares are parts of the documents in use (`documents` 0: all).

    With `source` chats devices are people: `concentration` says nothing there, and `heldout_share` is of the people.
    """

    devices: int
    coordinator_share: float
    heldout_share: float
    concentration: float = 1.0
    documents: int = 0
    source: str = "wikipedia"


@dataclass(frozen=True)
class Private:
    """One sensitive topic: the devices (by index) that have it, and the records that each of them holds."""

    topic: str
    devices: list[int]
    records: int
    heldout: int


@dataclass(frozen=True)
class Anchor:
    """Preset, vocabulary size, and sequence length in tokens; `control`: also one that trains without a bank."""

    preset: str
    vocabulary: int
    length: int
    control: bool = True


@dataclass(frozen=True)
class Bank:
    """Branching of the cluster tree and block width per level."""

    branching: int
    widths: list[int]


@dataclass(frozen=True)
class Phase:
    """Steps of central training; learning rates as in `fedmem.training.loop.Settings`.

    With 0 steps everything stays as it was initialised. `pooled`: on the shareable text of all devices, which no
    coordinator has; that is what federated rounds are compared with.
    """

    steps: int
    batch: int = 1
    lr: float = 0.0
    memory_lr: float = 0.0
    pooled: bool = False


@dataclass(frozen=True)
class Federation:
    """Federated rounds: `parts` are trained by devices, `rounds` per release; 0 rounds: a release and no federation.

    | field | meaning |
    |---|---|
    | steps, batch, lr, memory_lr | local training of a device in a round |
    | first_steps | local steps of round 1; they double up to `steps`, over all releases. 0: `steps` in every round |
    | final | share of the learning rates that is left in the last round, on a cosine over all steps |
    | warmup | steps in which a round's rates rise |
    | eps | AdamW's on the device: its second moment starts anew in each round (`fedmem.training.settings`) |
    | optimiser, momentum, server_lr | the server's step (`fedmem.federation.server_step`) |
    | trim | share of replies cut at either end of each coordinate; only without noise |
    | sampling_rate or cohort_size, noise_multiplier, delta, epsilon_max | `fedmem.federation.device_dp.DevicePlan` |
    | silent | share of devices that a round's request never reaches, drawn anew in each round |
    | hostile | share of devices, always the same, that send the longest update against their training |
    """

    parts: list[str]
    rounds: int
    releases: int
    steps: int
    batch: int
    lr: float
    memory_lr: float
    server_lr: float
    clip: float
    final: float = 1.0
    warmup: int = 1
    eps: float = 1e-8
    first_steps: int = 0
    optimiser: str = "fedavg"
    momentum: float = 0.9
    trim: float = 0.0
    sampling_rate: float = 1.0
    cohort_size: int = 0
    noise_multiplier: float = 0.0
    delta: float = 1e-5
    epsilon_max: float = 0.0
    unsafe_no_dp: bool = False
    unsafe_reason: str = ""
    silent: float = 0.0
    hostile: float = 0.0


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
    contradictions.check(scenario)
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
