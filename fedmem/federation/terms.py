"""The public terms of a federation: one TOML file, equal on the coordinator and on every device.

Invariants
- Terms are public and never a function of what a vault holds.
- A key that is unknown or missing, and a value of another type, is a UsageError that names the key.
- Devices and coordinator compare digests of the plan; the two processes of a device compare digests of plan and shapes.

    release = "3f0c…"                # digest of the release that the rounds start from
    parts = ["level-1", "generic"]   # the federated parts: anchor, level-<n>, generic
    [plan]                           # fields of `DevicePlan`; `run` names the federation
    [rounds]                         # fields of `RoundSettings`
    [local]                          # fields of `LocalSettings`

>>> plan = DevicePlan(population=1, unsafe_no_dp=True, unsafe_reason="an example")
>>> Terms(plan, {"w": (2,)}).digest() == Terms(plan, {"w": (3,)}).digest()
False
"""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from fedmem.errors import NothingMatched, UsageError
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.rounds import RoundSettings, local_steps
from fedmem.federation.wire import Shapes
from fedmem.storage.canonical import digest

Section = TypeVar("Section")
_NUMBERS = {"float": (int, float), "int": (int,), "bool": (bool,), "str": (str,), "float | None": (int, float)}


@dataclass(frozen=True)
class Terms:
    """The public terms of a run.

    Attributes:
        plan: the device plan, which names the run.
        shapes: name -> shape of the federated parameters.
    """

    plan: DevicePlan
    shapes: Shapes

    def digest(self) -> str:
        """Return the SHA-256 over all terms, hex. The two processes of a device compare it first."""
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        return digest({"plan": self.plan.to_dict(), "shapes": shapes})


@dataclass(frozen=True)
class LocalSettings:
    """Settings of a device's local training that no request carries.

    Attributes:
        length: tokens of a sequence, from 2.
        warmup: number of steps, 0 or more, in which the learning rates rise at the start of a round.
        eps: ε of AdamW, above 0.
        final: factor on the learning rates in the last round, in [0, 1]; they fall on a cosine over all steps.
    """

    length: int
    warmup: int = 1
    eps: float = 1e-8
    final: float = 1.0

    def __post_init__(self) -> None:
        if not (self.length >= 2 and self.warmup >= 0 and self.eps > 0 and 0 <= self.final <= 1):
            raise UsageError("A number of [local] is out of its range; `LocalSettings` names the ranges.")


@dataclass(frozen=True)
class Agreement:
    """The content of a terms file.

    Attributes:
        release: digest of the release, hex.
        parts: the federated parts: `anchor`, `level-<n>`, `generic`.
        steps_by_round: local steps of each round of the plan, from round 1.
    """

    release: str
    parts: tuple[str, ...]
    plan: DevicePlan
    rounds: RoundSettings
    local: LocalSettings
    steps_by_round: tuple[int, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if not self.parts or not self.release:
            raise UsageError("Terms name a release and at least one part of it.")
        steps = (local_steps(n, self.rounds.steps, self.rounds.first_steps) for n in range(1, self.plan.rounds + 1))
        object.__setattr__(self, "steps_by_round", tuple(steps))

    @classmethod
    def load(cls, file: Path) -> "Agreement":
        """Read a terms file.

        Args:
            file: path of the TOML file.

        Raises:
            NothingMatched: there is no such file.
            UsageError: the file is not valid TOML, or a key is unknown, missing or of another type.
            Refused: the plan adds no noise and does not declare `unsafe_no_dp`.
        """
        try:
            return cls.from_dict(tomllib.loads(file.read_text(encoding="utf-8")))
        except OSError:
            raise NothingMatched(f"The terms file {file} cannot be read. Give the file of your coordinator.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"The terms file {file.name} is not valid TOML: {error}.") from None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Agreement":
        """Return the agreement of its JSON form.

        Args:
            values: key -> value, as `to_dict` returns them.

        Raises:
            UsageError, Refused: as `load`.
        """
        rest = dict(values)
        plan = _section(DevicePlan, rest.pop("plan", None), "plan")
        rounds = _section(RoundSettings, rest.pop("rounds", None), "rounds")
        local = _section(LocalSettings, rest.pop("local", None), "local")
        release, parts = rest.pop("release", None), rest.pop("parts", None)
        if rest:
            raise UsageError(f"Terms have no key {sorted(rest)[0]!r}.")
        if not isinstance(release, str) or not isinstance(parts, list) or not all(isinstance(p, str) for p in parts):
            raise UsageError("Terms need release, the digest of a release, and parts, a list of names.")
        return cls(release, tuple(parts), plan, rounds, local)

    def to_dict(self) -> dict[str, Any]:
        """Return all terms as plain values."""
        sections = {"plan": asdict(self.plan), "rounds": asdict(self.rounds), "local": asdict(self.local)}
        return {"release": self.release, "parts": list(self.parts), **sections}


def _section(kind: type[Section], values: Any, name: str) -> Section:
    section_fields = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise UsageError(f"Terms need a section [{name}].")
    for key, value in values.items():
        if key not in section_fields:
            raise UsageError(f"[{name}] of the terms has no key {key!r}.")
        type_name = getattr(section_fields[key].type, "__name__", str(section_fields[key].type))
        is_bool_for_number = isinstance(value, bool) and type_name != "bool"
        is_of_type = isinstance(value, _NUMBERS[type_name]) and not is_bool_for_number
        if not is_of_type and not (value is None and "None" in type_name):
            raise UsageError(f"{key} in [{name}] of the terms needs to be {type_name}.")
    missing = [key for key, field in section_fields.items() if field.default is MISSING and key not in values]
    if missing:
        raise UsageError(f"[{name}] of the terms lacks {missing[0]}.")
    return kind(**values)


def rate_left(steps_by_round: Sequence[int], final: float, number: int) -> float:
    """Return the factor on a device's learning rates in round `number`, from 1.

    It falls from 1 to `final` on a cosine over all steps. A device computes it from public terms alone.

    Args:
        steps_by_round: local steps of each round, from round 1.
        final: the factor in the last round, in [0, 1].
    """
    progress = sum(steps_by_round[: number - 1]) / max(1, sum(steps_by_round[:-1]))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
