"""privacy audit: the envelope, the tables, and exit code 12."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import fedmem.eval.audit as room
from fedmem.cli.audit import audit
from fedmem.cli.main import main
from fedmem.cli.privacy import privacy

Call = Callable[..., tuple[Any, dict[str, Any]]]
PLACE = {"correct": 13, "out_of": 24, "interval": [0.28, 0.79], "p_value": 0.42, "impossible": 0}
PLACE |= {"planted_correct": 24, "planted_caught": True}
MOMENTS = ("before", "after_dp", "after_non_dp", "after_erasure")


@pytest.fixture(autouse=True)
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command stands among its siblings."""
    monkeypatch.setitem(privacy.commands, "audit", audit)


def told(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[int]:
    """Stand in for the measurement with figures of its shape; gives the numbers of canaries that were asked for."""
    asked = list[int]()
    data = {
        "claimed": 1.999,
        "lower_bound": 0.45,
        "white_box": 0.45,
        "black_box": 0.25,
        "attacks": {"white_box_product": 0.45, "white_box_decoded": 0.0, "black_box": 0.25},
        "p_value": 1.0,
        "method": "f-DP in one run",
        "canaries": 1000,
        "confidence": 0.95,
        "delta": 1e-5,
        "plan": {},
        "exact": {"streams": True, "noise_std": True, "sensitivity": True},
        "planted": {
            "no_noise": {"caught": True, "by": "audit", "lower_bound": 4.1},
            "half_noise": {"caught": True, "by": "exact: noise_std", "lower_bound": 1.2},
        },
        "rounding": dict.fromkeys(("updates", "final_block", "federated"), PLACE),
        "exposure": dict(zip(MOMENTS, (1.4, 1.9, 6.1, 1.4), strict=True)),
        "extraction": dict(zip(MOMENTS, (0.0, 0.0, 1.0, 0.0), strict=True)),
        "verified": True,
        "holds": True,
        "seconds": 40.0,
    }
    monkeypatch.setattr(room, "run_audit", lambda canaries, progress: (asked.append(canaries), data | changes)[1])
    return asked


def test_the_envelope(fedmem: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch)
    result, envelope = fedmem("privacy", "audit")
    assert (result.exit_code, envelope["schema"]) == (0, "fedmem.privacy.audit/1")
    data = envelope["data"]
    assert data["lower_bound"] < data["claimed"] <= 2.0
    assert data["planted"]["half_noise"] == {"caught": True, "by": "exact: noise_std", "lower_bound": 1.2}


def test_quick_is_half_the_canaries(fedmem: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = told(monkeypatch)
    fedmem("privacy", "audit")
    fedmem("privacy", "audit", "--quick")
    assert asked == [1000, 500]


def test_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch)
    result = CliRunner().invoke(main, ["privacy", "audit"])
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["claimed", "ε", "1.999"] in lines
    assert ["after", "DP", "1.900", "0"] in [[*line[:-1], line[-1][0]] for line in lines]
    assert ["half_noise", "yes", "exact:", "noise_std", "1.200"] in lines
    assert "13 of 24" in result.stdout
    assert "0.28 to 0.79" in result.stdout
    assert "found, 24 of 24" in result.stdout
    assert "95% sure, 1000 canaries" in result.stdout
    assert ["p-value", "of", "the", "claim", "1.000"] in lines


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lower_bound": 2.5, "white_box": 2.5}, "above the claim"),
        ({"planted": {"no_clip": {"caught": False, "by": None, "lower_bound": 0.1}}}, "no_clip"),
        ({"exact": {"noise_std": False}}, "noise_std"),
        ({"verified": False}, "still answers"),
        (
            {"rounding": {**dict.fromkeys(("updates", "federated"), PLACE), "final_block": PLACE | {"p_value": 1e-7}}},
            "bits",
        ),
        (
            {"rounding": dict.fromkeys(("updates", "final_block", "federated"), PLACE | {"planted_caught": False})},
            "float",
        ),
    ],
)
def test_what_fails_ends_with_12_and_keeps_its_figures(
    fedmem: Call, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    told(monkeypatch, **changes)
    result, envelope = fedmem("privacy", "audit")
    assert (result.exit_code, envelope["schema"]) == (12, "fedmem.privacy.audit/1")
    assert words in result.stderr
    for name, value in changes.items():
        assert envelope["data"][name] == value


def test_it_takes_no_vault(fedmem: Call, tmp_path: Path) -> None:
    for words in (["--vault", str(tmp_path)], ["--subject", "ana"], ["--steps", "0"], ["now"]):
        result, envelope = fedmem("privacy", "audit", *words)
        assert (result.exit_code, envelope["data"]["error"]) == (2, "UsageError")


@pytest.mark.slow
def test_a_real_audit(fedmem: Call, home: Path) -> None:
    result, envelope = fedmem("privacy", "audit", "--quick")
    data = envelope["data"]
    assert (result.exit_code, data["canaries"], data["holds"]) == (0, 500, True)
    assert max(data["attacks"].values()) == data["lower_bound"]
    assert data["p_value"] > 0.05 > data["planted"]["no_noise"]["p_value"]
    assert set(data["planted"]) == {
        "no_noise",
        "noise_over_b",
        "no_clip",
        "batch_clip",
        "half_noise",
        "reused_stream",
    }
    assert all(verdict["caught"] for verdict in data["planted"].values())
    assert not [path for path in home.rglob("*") if path.is_file()]
