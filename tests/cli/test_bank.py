"""anchor and bank: the whole way on a tiny corpus, what is shown of it, and how bad input ends."""

import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedmem.anchor import presets
from fedmem.cli import anchor as anchor_noun
from fedmem.cli import bank as bank_noun
from fedmem.cli.main import main
from fedmem.errors import VersionMismatch
from fedmem.memory.kinds import kind_named
from fedmem.sdk.client import Client
from fedmem.training.release import Release
from tests.cli.conftest import TINY, call, made
from tests.routing import fake_minilm


def test_show_and_verify(work: dict[str, Path]) -> None:
    shown = made("bank", "show", work["release"])
    assert [level["widths"] for level in shown["levels"]] == [[3, 5], [1, 3]]
    assert shown["release"] == work["release"].name
    checked = made("bank", "verify", work["release"])
    assert (checked["verified"], checked["release"]) == (True, work["release"].name)
    result = CliRunner().invoke(main, ["bank", "show", str(work["release"])])
    for expected in ("LlamaForCausalLM", "3 5", work["release"].name, "%"):
        assert expected in result.stdout


def test_without_a_name_it_is_the_last_release_of_the_last_run(work: dict[str, Path], home: Path) -> None:
    assert call("bank", "show")[0].exit_code == 3
    run = home / "runs" / "quickstart-0001"
    (run / "state").mkdir(parents=True)
    (run / "state" / "inputs.json").write_text("{}")
    (run / "releases").mkdir()
    assert call("bank", "verify")[0].exit_code == 3
    shutil.copytree(work["release"], run / "releases" / work["release"].name)
    assert made("bank", "verify")["folder"] == str(run / "releases" / work["release"].name)
    assert made("bank", "show")["release"] == work["release"].name


def test_a_changed_release_ends_with_6(work: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(work["release"], tmp_path / work["release"].name))
    (folder / "tokenizer.json").write_text("{}")
    for verb in ("verify", "show"):
        result, envelope = call("bank", verb, str(folder))
        assert (result.exit_code, envelope["data"]["error"]) == (6, "VerificationFailed")


def test_jobs_then_the_rest_then_nothing_to_do(work: dict[str, Path], tmp_path: Path) -> None:
    words = ("bank", "train", work["corpus"], "--release", work["release"], "--out", tmp_path, "--mode", "posthoc")
    told = made(*words, *TINY, "--subtree", 1, "--subtree", 0)
    assert told["done"] == ["subtree-0", "subtree-1"]
    human = CliRunner().invoke(main, [*map(str, words), *TINY, "--subtree", "2"])
    assert human.exit_code == 0, human.stderr
    assert "generic" in human.stdout
    data = made(*words, *TINY)
    assert made("bank", "verify", data["folder"])["release"] == data["release"] != work["release"].name
    assert "<svg" in (tmp_path / "report.html").read_text()
    assert made(*words, *TINY) == data
    result, envelope = call(*map(str, words), *TINY, "--seed", "8")
    assert (result.exit_code, envelope["data"]["error"]) == (9, "VersionMismatch")


def test_cotrain_for_people(work: dict[str, Path], tmp_path: Path) -> None:
    words = ["bank", "train", work["corpus"], "--release", work["release"], "--out", tmp_path, *TINY]
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 0, result.stderr
    assert "cotrain, held-out loss" in result.stdout
    assert "report.html" in result.stderr


def test_what_a_file_holds_out_is_left_out(tmp_path: Path) -> None:
    from fedmem.sim.sources.texts import public_texts

    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "a"}\n{"text": "b", "split": "heldout"}\n{"text": "c"}\n')
    assert public_texts(str(corpus))[0] == ["a", "c"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("anchor", "train", "no-such.jsonl", "--out", "x"), 2),
        (("anchor", "train", "CORPUS", "--out", "x", "--vocabulary", "20"), 2),
        (("anchor", "train", "CORPUS", "--out", "x", "--lr", "0"), 2),
        (("bank", "build", "CORPUS", "--anchor", "none", "--out", "x"), 3),
        (("bank", "build", "CORPUS", "--anchor", "ANCHOR", "--out", "x", "--widths", "4,a"), 2),
        (("bank", "build", "CORPUS", "--anchor", "ANCHOR", "--out", "x", "--widths", "0"), 2),
        (("bank", "train", "CORPUS", "--release", "none", "--out", "x"), 3),
        (("bank", "train", "CORPUS", "--release", "RELEASE", "--out", "x", "--subtree", "0"), 2),
        (("bank", "train", "CORPUS", "--release", "RELEASE", "--out", "x", "--mode", "frozen", "--subtree", "9"), 2),
        (("bank", "verify", "none"), 3),
    ],
)
def test_bad_input_has_its_code(
    words: tuple[str, ...], code: int, work: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = {"CORPUS": work["corpus"], "ANCHOR": work["anchor"], "RELEASE": work["release"]}
    result, envelope = call(*(str(named.get(word, word)) for word in words))
    assert (result.exit_code, envelope["schema"]) == (code, "fedmem.error/1"), result.stderr


def test_choices_are_those_that_exist() -> None:
    assert list(anchor_noun.PRESETS) == list(presets.PRESETS)
    for kind in bank_noun.KINDS:
        assert kind_named(kind)


def test_a_release_of_minilm_serves_its_vaults_and_no_others(
    work: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release names its embedder; training, routing and the client open it; vaults of another one stay whole."""
    fake_minilm.install(tmp_path / "packages", monkeypatch)
    words = ("--branching", 3, "--widths", "4,2", "--embedder", "minilm")
    built = made("bank", "build", work["corpus"], "--anchor", work["anchor"], "--out", tmp_path / "bank", *words)
    assert made("bank", "show", built["folder"])["embedder"] == "minilm-int8"
    trained = made("bank", "train", work["corpus"], "--release", built["folder"], "--out", tmp_path / "out", *TINY)
    assert Release.load(Path(trained["folder"])).embedder.name == "minilm-int8"
    text = tmp_path / "text"
    text.write_text("the river")
    assert len(made("route", "explain", text, "--release", trained["folder"])["path"]) == 2
    vaults = {"old": None, "new": trained["folder"]}
    for name, release in vaults.items():
        with Client.open("ana", tmp_path / name, "keyfile", release=release) as client:
            client.add("the river and the sea")
            client.add("a bank", topic="health")
            assert [hit.text for hit in client.search("the river", k=1)] == ["the river and the sea"]
    for name, release in zip(vaults, reversed(vaults.values()), strict=True):
        with Client.open("ana", tmp_path / name, "keyfile", release=release) as client:
            for fault in (lambda client=client: client.search("river"), lambda client=client: client.add("a hill")):
                with pytest.raises(VersionMismatch, match="another embedder"):
                    fault()
            if release:
                with pytest.raises(VersionMismatch, match="another embedder"):
                    client.learn("health")
                assert client.privacy.budget().runs == []
        with Client.open("ana", tmp_path / name, "keyfile", release=vaults[name]) as client:
            assert [hit.text for hit in client.search("the river", k=1)] == ["the river and the sea"]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result, _ = call("route", "explain", str(text), "--release", trained["folder"])
    assert result.exit_code == 2
    assert "pip install onnxruntime" in result.stderr
