"""The runtime folder is read only where nobody else may read it."""

import json
import os
from pathlib import Path

import pytest

from fedmem.errors import Refused
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.rounds import RoundSettings
from fedmem.federation.runtime import DEVICE, RELEASE, TERMS, TOKEN, Runtime
from fedmem.federation.terms import Agreement, LocalSettings, Terms

PLAN = DevicePlan(population=1, unsafe_no_dp=True, unsafe_reason="a test")
AGREEMENT = Agreement("0" * 64, ("anchor",), PLAN, RoundSettings(), LocalSettings(length=8))


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    (tmp_path / "releases" / "abc").mkdir(parents=True)
    (tmp_path / "device").mkdir()
    folder = tmp_path / "device"
    (folder / TOKEN).write_bytes(bytes(range(32)))
    (folder / TOKEN).chmod(0o600)
    (folder / TERMS).write_text(json.dumps({"agreement": AGREEMENT.to_dict(), "shapes": {"w": [2, 3], "one": []}}))
    (folder / RELEASE).symlink_to(tmp_path / "releases" / "abc")
    monkeypatch.setenv(DEVICE, str(folder))
    return Runtime.from_environment()


def test_a_folder_is_read_whole(runtime: Runtime, tmp_path: Path) -> None:
    assert runtime.token() == bytes(range(32))
    assert runtime.agreement() == AGREEMENT
    assert runtime.terms().digest() == Terms(PLAN, {"w": (2, 3), "one": ()}).digest()
    assert runtime.release() == (tmp_path / "releases" / "abc").resolve()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_token_that_others_may_read_or_change_is_refused(runtime: Runtime, mode: int) -> None:
    (runtime.folder / TOKEN).chmod(mode)
    with pytest.raises(Refused, match="token"):
        runtime.token()


@pytest.mark.parametrize("length", [0, 31, 33, 4096])
def test_a_token_of_another_length_is_refused(runtime: Runtime, length: int) -> None:
    (runtime.folder / TOKEN).write_bytes(bytes(length))
    with pytest.raises(Refused, match="token"):
        runtime.token()


def test_a_link_in_place_of_the_token_is_not_followed(runtime: Runtime, tmp_path: Path) -> None:
    os.rename(runtime.folder / TOKEN, tmp_path / "elsewhere")
    (runtime.folder / TOKEN).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        runtime.token()


def test_a_process_that_was_given_no_runtime_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DEVICE, raising=False)
    with pytest.raises(Refused):
        Runtime.from_environment()
