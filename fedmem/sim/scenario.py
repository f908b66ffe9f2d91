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

    The coordinator's text is always Wikipedia. With the source `chats` every device is one person.

    Attributes:
        devices: the number of devices, from 1.
        coordinator_share: the coordinator's part of the documents in use, 0 to 1.
        heldout_share: the held-out part of the documents in use, 0 to 1; with `chats` a part of the people.
        concentration: the parameter of the Dirichlet draw over devices, above 0; without effect with `chats`.
        documents: the number of documents in use; 0 for all.
        source: the text of devices and of the held-out part, `wikipedia` or `chats`.
    """

    devices: Count
    coordinator_share: float
    heldout_share: float
    concentration: float = 1.0
    documents: int = 0
    source: Annotated[str, toml.one_of(("wikipedia", "chats"))] = "wikipedia"


class Private(toml.TomlTable, frozen=True):
    """One private topic.

    Attributes:
        topic: a topic of the policy.
        devices: the indices of the devices that have it.
        records: the number of records that each of these devices holds.
        heldout: the number of held-out records for each of these devices.
    """

    topic: str
    devices: list[int]
    records: int
    heldout: int


class Anchor(toml.TomlTable, frozen=True):
    """The settings of the anchor.

    Attributes:
        preset: the name of a preset of `fedmem.anchor.presets`.
        vocabulary: the number of tokens of the vocabulary.
        length: the length of a sequence, in tokens.
        control: also train an anchor without a bank.
    """

    preset: str
    vocabulary: int
    length: int
    control: bool = True


class BankSettings(toml.TomlTable, frozen=True):
    """The settings of the bank.

    Attributes:
        branching: the number of children of a node of the cluster tree.
        widths: the width of a block at each level, in rows.
    """

    branching: Count
    widths: list[Count]


class Phase(toml.TomlTable, frozen=True):
    """The settings of a central training phase; learning rates as in `fedmem.training.settings.Settings`.

    With 0 steps, anchor and bank keep their initial values.

    Attributes:
        steps: the number of steps, from 0.
        batch: the number of sequences of a step.
        lr: the peak learning rate of the anchor.
        memory_lr: the peak learning rate of the bank.
        pooled: train on the shareable text of all devices, which a coordinator never has. Such a phase is the baseline
            for federated rounds.
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
    """The width of private blocks and the public settings of DP-SGD. ε and δ come from the topic in the policy.

    Attributes:
        width: the width of a block, in rows.
        record_cap: the greatest number of records of a topic.
        nominal: the public number of records that the divisor of a step assumes.
        sampling_rate: the probability of a record in a step, in (0, 1].
        steps: the number of steps.
        clip: the clip norm of a record's gradient.
        lr: the peak learning rate.
    """

    width: int
    record_cap: int
    nominal: int
    sampling_rate: float
    steps: Count
    clip: float
    lr: float


class Scenario(toml.TomlTable, frozen=True):
    """All settings of a simulation run.

    Attributes:
        name: the name of the scenario.
        about: a sentence about it.
        seed: the seed of a run that names none.
        public: the public text.
        anchor: the anchor.
        bank: the bank.
        pretrain: the phase that trains the anchor alone.
        cotrain: the phase that trains anchor and bank.
        federation: the federated rounds.
        learning: the training of private blocks.
        private: the private topics.
    """

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


def scenarios_folder() -> Path:
    """Return the folder of the scenarios: inside the package, or beside it in a checkout."""
    inside = Path(str(resources.files("fedmem") / "sims"))
    return inside if inside.is_dir() else Path(__file__).parents[2] / "sims"


def scenario_names() -> list[str]:
    """Return the names of the scenarios that come with fedmem."""
    return sorted(path.stem for path in scenarios_folder().glob("*.toml"))


def load(name: str) -> Scenario:
    """Read a scenario by its name, or by the path of a TOML file.

    Args:
        name: a name of `scenario_names()`, or a path that ends in `.toml`.

    Raises:
        UsageError: there is no such scenario, or it is invalid.
    """
    path = Path(name) if name.endswith(".toml") else scenarios_folder() / f"{name}.toml"
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
