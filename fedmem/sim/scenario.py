"""A scenario: one TOML file in sims/ that says what a simulated federation is made of.

Invariants
- Every key is known and has its type; a missing or unknown one is a UsageError that names it.
- A scenario is public and frozen: nothing in it is a function of anyone's data.
- Federated rounds without noise must say `unsafe_no_dp = true` and why (docs/design.md, §7).
- What contradicts itself is a UsageError with a sentence, before anything is trained (`contradictions`).
"""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, field, to_builtins

from fedmem import toml
from fedmem.errors import UsageError
from fedmem.sim import contradictions
from fedmem.storage.canonical import digest

Whole = Annotated[int, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]
Part = Annotated[float, Meta(ge=0)]


class Public(toml.TomlTable, frozen=True):
    """Text for federated training and who holds it; shares are parts of the documents in use (`documents` 0: all).

    `source` says whose text devices hold and what is held out; the coordinator's own is Wikipedia in any case.
    With chats devices are people: `concentration` says nothing there, and `heldout_share` is of the people.
    """

    devices: Count
    coordinator_share: float
    heldout_share: float
    concentration: float = 1.0
    documents: int = 0
    source: Annotated[str, toml.one_of(("wikipedia", "chats"))] = "wikipedia"


class Private(toml.TomlTable, frozen=True):
    """One sensitive topic: the devices (by index) that have it, and the records that each of them holds."""

    topic: str
    devices: list[int]
    records: int
    heldout: int


class Anchor(toml.TomlTable, frozen=True):
    """Preset, vocabulary size, and sequence length in tokens; `control`: also one that trains without a bank."""

    preset: str
    vocabulary: int
    length: int
    control: bool = True


class BankSettings(toml.TomlTable, frozen=True):
    """Branching of the cluster tree and block width per level."""

    branching: Count
    widths: list[Count]


class Phase(toml.TomlTable, frozen=True):
    """Steps of central training; learning rates as in `fedmem.training.loop.Settings`.

    With 0 steps everything stays as it was initialised. `pooled`: on the shareable text of all devices, which no
    coordinator has; that is what federated rounds are compared with.
    """

    steps: Whole
    batch: Count = 1
    lr: float = 0.0
    memory_lr: float = 0.0
    pooled: bool = False


class Federation(toml.TomlTable, frozen=True):
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
    rounds: Whole
    releases: Count
    steps: Count
    batch: Count
    lr: float
    memory_lr: float
    server_lr: float
    clip: float
    final: Annotated[float, Meta(gt=0, le=1)] = 1.0
    warmup: Count = 1
    eps: Annotated[float, Meta(gt=0)] = 1e-8
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
    silent: Part = 0.0
    hostile: Part = 0.0


class LearningSettings(toml.TomlTable, frozen=True):
    """Private blocks: width, and the public terms of DP-SGD; ε and δ come from the policy's topic."""

    width: int
    record_cap: int
    nominal: int
    sampling_rate: float
    steps: Count
    clip: float
    lr: float


class Scenario(toml.TomlTable, frozen=True):
    """Everything a run is made of."""

    name: str
    about: str
    seed: int
    public: Public
    anchor: Anchor
    bank: BankSettings
    pretrain: Phase
    cotrain: Phase
    federation: Federation
    learning: LearningSettings
    private: list[Private] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as it stands in `run.json`."""
        values: dict[str, Any] = to_builtins(self)
        return values

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
        data = path.read_bytes()
    except OSError:
        raise UsageError(
            f"There is no scenario {name!r}; choose one of {', '.join(known())}, or a path to a TOML file."
        ) from None
    return from_dict({"name": path.stem, **toml.parse(data, path.name)}, path.name)


def from_dict(data: Mapping[str, Any], where: str = "The scenario of this run") -> Scenario:
    """Read a scenario from its JSON or TOML form. Raises UsageError."""
    scenario = toml.validated(data, Scenario, where)
    contradictions.check(scenario)
    return scenario
