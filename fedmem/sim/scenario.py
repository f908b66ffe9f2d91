"""Read scenarios: each one is a TOML file in `sims/` that describes a simulated federation.

Invariants
- Every key is known and has its type. A missing or unknown key is a UsageError that names it.
- A scenario is public and frozen. Nothing in it depends on anyone's data.
- Federated rounds without noise must set `unsafe_no_dp = true` and give a reason (docs/design.md, §7).
- A scenario that contradicts itself is a UsageError before any training starts (`contradictions`).

>>> load("quickstart").name
'quickstart'
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
    """The public text, and how it is divided over coordinator, devices and held-out part.

    Shares are parts of the documents in use; `documents` = 0 means all documents. `source` names the text of devices
    and of the held-out part. The coordinator's text is always Wikipedia. With the source `chats` every device is one
    person. `concentration` has no effect then, and `heldout_share` is a share of the people.
    """

    devices: Count
    coordinator_share: float
    heldout_share: float
    concentration: float = 1.0
    documents: int = 0
    source: Annotated[str, toml.one_of(("wikipedia", "chats"))] = "wikipedia"


class Private(toml.TomlTable, frozen=True):
    """One private topic: the indices of the devices that have it, and the number of records that each device holds."""

    topic: str
    devices: list[int]
    records: int
    heldout: int


class Anchor(toml.TomlTable, frozen=True):
    """The anchor's preset, vocabulary size and sequence length in tokens.

    `control`: also train an anchor without a bank.
    """

    preset: str
    vocabulary: int
    length: int
    control: bool = True


class BankSettings(toml.TomlTable, frozen=True):
    """The branching of the cluster tree, and the width of a block at each level."""

    branching: Count
    widths: list[Count]


class Phase(toml.TomlTable, frozen=True):
    """The settings of a central training phase; learning rates as in `fedmem.training.settings.Settings`.

    With 0 steps, anchor and bank keep their initial values. `pooled`: train on the shareable text of all devices. A
    coordinator never has that text. Such a phase is the baseline for federated rounds.
    """

    steps: Whole
    batch: Count = 1
    lr: float = 0.0
    memory_lr: float = 0.0
    pooled: bool = False


class Federation(toml.TomlTable, frozen=True):
    """The settings of the federated rounds.

    `parts` are trained by the devices. `rounds` counts the rounds before each release. With 0 rounds there is a release
    and no federation.

    | field | meaning |
    |---|---|
    | steps, batch, lr, memory_lr | local training of a device in a round |
    | first_steps | local steps of round 1; they double up to `steps`, over all releases. 0: `steps` in every round |
    | final | fraction of the learning rates in the last round, on a cosine over all steps |
    | warmup | steps at the start of a round in which the learning rates rise |
    | eps | ε of AdamW on the device; its second moment starts anew in each round (`fedmem.training.settings`) |
    | optimiser, momentum, server_lr | the server's step (`fedmem.federation.server_step`) |
    | trim | share of replies that is cut at either end of each coordinate; only without noise |
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
    """The width of private blocks and the public settings of DP-SGD; ε and δ come from the topic in the policy."""

    width: int
    record_cap: int
    nominal: int
    sampling_rate: float
    steps: Count
    clip: float
    lr: float


class Scenario(toml.TomlTable, frozen=True):
    """All settings of a simulation run."""

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
        """Return the scenario in its JSON form, as `run.json` holds it."""
        values: dict[str, Any] = to_builtins(self)
        return values

    def digest(self) -> str:
        """Return the digest of all settings; runs of equal scenarios have the same one."""
        return digest(self.to_dict())


def folder() -> Path:
    """Return the folder of the scenarios: inside the package, or beside it in a checkout."""
    inside = Path(str(resources.files("fedmem") / "sims"))
    return inside if inside.is_dir() else Path(__file__).parents[2] / "sims"


def scenario_names() -> list[str]:
    """Return the names of the scenarios that come with fedmem."""
    return sorted(path.stem for path in folder().glob("*.toml"))


def load(name: str) -> Scenario:
    """Read a scenario by its name, or by the path of a TOML file.

    Args:
        name: a name of `scenario_names()`, or a path that ends in `.toml`.

    Raises:
        UsageError: there is no such scenario, or it is invalid.
    """
    path = Path(name) if name.endswith(".toml") else folder() / f"{name}.toml"
    try:
        data = path.read_bytes()
    except OSError:
        raise UsageError(
            f"There is no scenario {name!r}; choose one of {', '.join(scenario_names())}, or a path to a TOML file."
        ) from None
    return from_dict({"name": path.stem, **toml.parse(data, path.name)}, path.name)


def from_dict(data: Mapping[str, Any], where: str = "The scenario of this run") -> Scenario:
    """Read a scenario from its JSON or TOML form.

    Args:
        data: the settings by key.
        where: the place of the settings, for error messages.

    Raises:
        UsageError: a key is missing, unknown or of the wrong type, or the scenario contradicts itself.
    """
    scenario = toml.validated(data, Scenario, where)
    contradictions.check_scenario(scenario)
    return scenario
