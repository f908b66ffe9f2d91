"""The documents: what they name exists, and the picture of the house is that of the imports."""

import re
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from fedmem.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(path for pattern in ("*.md", "docs/**/*.md", "*/README.md") for path in ROOT.glob(pattern))
DESIGN = (ROOT / "docs/design.md").read_text("utf-8")
PATH = re.compile(r"`((?:fedmem|tests|docs|client|server|benchmarks)/[\w./-]+\.(?:py|md|svg))`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Documents of the makers, and the names that the code had for them.
OUTSIDE = re.compile(r"(?:DESIGN|PAPER|STYLE)(?:\.md|,? §|,? habit|, [A-Z]| I\d)|\[HM\b|\bshared/(?:[A-Z]|data|cases)")
OURS = ("checkout", "setup-python", "upload-artifact")  # actions of the workflow, all of GitHub's own
REFERENCE = re.compile(r"docs/(design|method)\.md,\s+((?:§\d+(?:\.| and )?)+)")


def house() -> dict[str, Any]:
    """Return the functions of docs/house.py, which is no module of a package."""
    return runpy.run_path(str(ROOT / "docs/house.py"))


def tracked(*folders: str) -> list[Path]:
    """Return the text files below some folders, without caches."""
    suffixes = {".py", ".md", ".toml", ".yml", ".yaml", ".j2"}
    return [
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes and "__pycache__" not in path.parts
    ]


def section(text: str, title: str) -> str:
    """Return the text below a heading, up to the next heading of its depth or above."""
    depth = title.split(" ")[0]
    return re.split(rf"^#{{1,{len(depth)}}} ", text.split(f"{title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def slug(title: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def commands() -> dict[str, set[str]]:
    """Return the verbs of each noun of the command line."""
    context = click.Context(main)
    nouns = {name: main.get_command(context, name) for name in main.list_commands(context)}
    return {name: set(noun.list_commands(context)) if isinstance(noun, click.Group) else set()
            for name, noun in nouns.items()}  # fmt: skip


class TestHouse:
    def test_the_picture_shows_the_imports_as_they_are(self) -> None:
        drawn = house()["picture"](ROOT)
        assert (ROOT / "docs/house.svg").read_text("utf-8") == drawn, "run `make house` and commit docs/house.svg"

    def made(self, root: Path, **sources: str) -> Path:
        """Write a package of one module a room, under a contract of three layers."""
        rows = '"fedmem.top", "fedmem.left : fedmem.right", "fedmem.low"'
        contract = f'[[tool.importlinter.contracts]]\nname = "x"\ntype = "layers"\nlayers = [{rows}]\n'
        (root / "pyproject.toml").write_text(contract)
        for room, source in sources.items():
            (root / "fedmem" / room).mkdir(parents=True)
            (root / "fedmem" / room / "code.py").write_text(source)
        return root

    def test_imports_of_every_form_are_seen(self, tmp_path: Path) -> None:
        late = "def f():\n    from fedmem.right.code import x\n"
        root = self.made(tmp_path, top="import fedmem.low.code\nfrom fedmem import left", left=late, right="", low="")
        wanted = {("top", "low"), ("top", "left"), ("left", "right")}
        assert house()["edges_of"](root / "fedmem") == wanted

    def test_an_arrow_that_a_longer_way_stands_for_is_left_out(self) -> None:
        assert house()["reduced"](frozenset({("a", "b"), ("b", "c"), ("a", "c")})) == {("a", "b"), ("b", "c")}

    def test_a_circle_is_drawn_dashed(self, tmp_path: Path) -> None:
        root = self.made(tmp_path, left="import fedmem.right.code", right="import fedmem.left.code")
        assert house()["picture"](root).count('stroke-dasharray="5 3"') == 2

    def test_a_row_of_its_own_for_a_room_that_its_neighbour_imports(self) -> None:
        order, edges = [["top"], ["left", "right"]], frozenset({("left", "right")})
        assert house()["rows_of"](order, edges) == [(0, ["top"]), (1, ["left"]), (1, ["right"])]

    def test_a_room_without_a_layer_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="attic"):
            house()["picture"](self.made(tmp_path, top="", attic=""))


class TestReferences:
    @pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
    def test_files_and_links_exist(self, document: Path) -> None:
        text = document.read_text("utf-8")
        assert [name for name in PATH.findall(text) if not (ROOT / name).exists()] == []
        for link in LINK.findall(text):
            if "://" in link:
                continue
            file, _, anchor = link.partition("#")
            target = document.parent / file if file else document
            assert target.exists(), link
            if anchor:
                titles = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), flags=re.MULTILINE)
                assert anchor in {slug(title) for title in titles}, link

    def test_nothing_refers_to_a_document_outside_the_repository(self) -> None:
        folders = ("fedmem", "server", "client", "policies", "sims", "tests", "benchmarks", "docs", ".github")
        files = {*tracked(*folders), *DOCUMENTS} - {Path(__file__).resolve()}
        naming = [path for path in files if OUTSIDE.search(path.read_text("utf-8"))]
        assert [path.relative_to(ROOT).as_posix() for path in naming] == []

    @pytest.mark.parametrize("text", ["DESIGN §8", "[HM, §3]", "PAPER, Training", "STYLE, habit 3", "shared/DESIGN"])
    def test_such_a_reference_would_be_noticed(self, text: str) -> None:
        assert OUTSIDE.search(text)

    def test_sections_that_the_code_names_exist(self) -> None:
        titles = {
            name: set(re.findall(r"^## (\d+)\. ", (ROOT / f"docs/{name}.md").read_text("utf-8"), flags=re.MULTILINE))
            for name in ("design", "method")
        }
        named = [
            (path.name, page, number)
            for path in tracked("fedmem", "server", "client", "sims", "tests", "benchmarks")
            for page, numbers in REFERENCE.findall(path.read_text("utf-8"))
            for number in re.findall(r"\d+", numbers)
        ]
        assert len(named) > 50
        assert [entry for entry in named if entry[2] not in titles[entry[1]]] == []


class TestDesign:
    @pytest.mark.parametrize("thing", ["a record", "an answer", "an update", "an erasure"])
    def test_a_way_passes_under_ten_files(self, thing: str) -> None:
        files = PATH.findall(section(DESIGN, f"### The way of {thing}"))
        assert 5 <= len(files) < 10
        assert len(files) == len(set(files))

    def test_commands_that_it_lists_exist(self) -> None:
        text = section(DESIGN, "## 11. Command line and SDK")
        rows = re.findall(r"^\| `([a-z]+)` \| (.*)\|$", text, flags=re.MULTILINE)
        assert len(rows) > 10
        existing = commands()
        for noun, verbs in rows:
            assert set(re.findall(r"`([\w-]+)`", verbs)) <= existing[noun], noun

    def test_commands_that_it_misses_are_missing(self) -> None:
        (row,) = [line for line in DESIGN.splitlines() if line.startswith("| commands ")]
        existing = commands()
        every = {*existing, *(f"{noun} {verb}" for noun, verbs in existing.items() for verb in verbs)}
        assert set(re.findall(r"`([^`]+)`", row)) & every == set(), "take what is there now out of §15 into §11"

    def test_every_invariant_stands_there(self) -> None:
        assert {f"I{n}" for n in range(1, 13)} == set(re.findall(r"^- \*\*(I\d+) ", DESIGN, flags=re.MULTILINE))


class TestProject:
    def test_make_knows_every_target_that_is_named(self) -> None:
        targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE))
        texts = [path.read_text("utf-8") for path in [*DOCUMENTS, *tracked(".github")]]
        named = {
            name for text in texts for name in re.findall(r"(?:^|`|run: )make ([a-z0-9]+)", text, flags=re.MULTILINE)
        }
        assert {"setup", "test", "slow", "house"} <= named
        assert named <= targets

    def test_the_workflow_runs_the_suite_on_every_python_and_the_slow_tests_at_night(self) -> None:
        text = (ROOT / ".github/workflows/ci.yml").read_text("utf-8")
        jobs = yaml.safe_load(text)["jobs"]
        assert jobs["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
        runs = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
        assert ".ci/run" in runs["test"]
        assert "make slow" in runs["nightly"]
        assert any("hatchling build" in run for run in runs["wheel"])
        assert any("sbom.json" in run for run in runs["wheel"])
        assert set(re.findall(r"uses: ([^@]+)", text)) == {f"actions/{name}" for name in OURS}

    def test_hooks_use_the_tools_of_the_environment(self) -> None:
        (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
        assert repository["repo"] == "local"
        assert all(hook["entry"].startswith(".venv/bin/") for hook in repository["hooks"])


def test_a_word_of_the_glossary_has_one_meaning() -> None:
    words = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs/glossary.md").read_text("utf-8"), flags=re.MULTILINE)
    assert [word for word, times in Counter(words).items() if times > 1 and word not in ("word", "---")] == []


def test_no_document_names_a_machine() -> None:
    text = "\n".join(path.read_text("utf-8") for path in [*DOCUMENTS, *tracked(".github")])
    assert re.findall(r"(?<![\w$}\"./])/(?:work|home|root|Users)/\w+", text) == []
