"""A folder belongs to one set of inputs; its JSON files are written whole and read strictly."""

import pytest

from fedmem.errors import NothingMatched, VerificationFailed, VersionMismatch
from fedmem.storage.canonical import digest
from fedmem.training.state import TrainingTrace, Watch, claim, read_json, write_json

INPUTS = {"seed": 7, "corpus": "c1"}


def test_a_folder_keeps_its_inputs_and_names_those_that_differ(tmp_path):
    assert claim(tmp_path, INPUTS) == claim(tmp_path, dict(reversed(INPUTS.items()))) == digest(INPUTS)
    before = (tmp_path / "state" / "inputs.json").read_bytes()
    for other, names in (({"seed": 8, "corpus": "c2"}, "corpus, seed"), ({"seed": 7}, "corpus"),
                         (INPUTS | {"bf16": True}, "bf16")):  # fmt: skip
        with pytest.raises(VersionMismatch, match=rf"\({names}\)"):
            claim(tmp_path, other)
    assert (tmp_path / "state" / "inputs.json").read_bytes() == before


def test_damaged_inputs_are_refused_and_left(tmp_path):
    claim(tmp_path, INPUTS)
    path = tmp_path / "state" / "inputs.json"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(VerificationFailed, match="damaged"):
        claim(tmp_path, INPUTS)


def test_json_comes_back_and_a_missing_file_is_told(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"loss": 0.1})
    assert read_json(tmp_path / "new" / "a.json") == {"loss": 0.1}
    with pytest.raises(NothingMatched):
        read_json(tmp_path / "b.json")


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    assert read_json(tmp_path / "a.json") == 1


def test_a_trace_is_cut_after_a_step_and_a_watch_ignores_reports():
    trace = TrainingTrace([{"step": 0}, {"step": 4}, {"step": 5}], 1.5)
    assert [point["step"] for point in trace.keep_until(4).curve] == [0, 4]
    assert len(trace.curve) == 3
    assert trace.keep_until(9) == trace
    Watch().progress("anchor", 1, 2, "")
    Watch().scalar("anchor/train", 1, 0.5)
