"""Policy files: strict reading, and where a name is found."""

from pathlib import Path

import pytest

from fedmem.errors import UsageError
from fedmem.policy.files import parse_policy, read_policy
from fedmem.routing.embedder import StaticEmbedder

HEAD = 'schema = "fedmem.policy/1"\nname = "mine"\n'
TOPIC = "[topics.recipes]\nepsilon = 2.0\ndelta = 1e-6\n"
RULE = "[[topics.recipes.rules]]\n"


@pytest.fixture(scope="module")
def embedder() -> StaticEmbedder:
    return StaticEmbedder()


@pytest.mark.parametrize("name", ["floor", "default"])
def test_shipped_policies_parse(name: str, embedder: StaticEmbedder) -> None:
    layer = parse_policy(read_policy(name), name, embedder)
    assert layer.name == name
    assert list(layer.topics) == ["health", "finance", "notes"]
    assert all(layer.rules[topic] for topic in layer.topics)


def test_a_topic_placed_as_shared_has_no_rules(embedder: StaticEmbedder) -> None:
    text = f'{HEAD}{TOPIC}placement = "shared"\n{RULE}kind = "keywords"\nwords = ["soup"]\n'
    assert parse_policy(text.encode(), "file", embedder).rules == {"recipes": ()}


@pytest.mark.parametrize(
    "text",
    [
        "not toml",
        'schema = "fedmem.policy/2"\nname = "x"\n',
        HEAD + "speling = 1\n",
        HEAD + "[topics.recipes]\nepsilon = 2.0\n",
        HEAD + "[topics.recipes]\nepsilon = inf\ndelta = 1e-6\n",
        HEAD + "[topics.recipes]\nepsilon = nan\ndelta = 1e-6\n",
        HEAD + "[topics.recipes]\nepsilon = 0\ndelta = 1e-6\n",
        HEAD + "[topics.recipes]\nepsilon = true\ndelta = 1e-6\n",
        HEAD + "[topics.recipes]\nepsilon = 2.0\ndelta = 1e-4\n",
        HEAD + TOPIC + 'granularity = "word"\n',
        HEAD + TOPIC + 'placement = "public"\n',
        HEAD + TOPIC + RULE + 'kind = "magic"\n',
        HEAD + TOPIC + RULE + 'kind = "keywords"\nwords = []\n',
        HEAD + TOPIC + RULE + 'kind = "keywords"\nwords = ["a b c d"]\n',
        HEAD + TOPIC + RULE + 'kind = "keywords"\nwords = ["!"]\n',
        HEAD + TOPIC + RULE + 'kind = "keywords"\nwords = ["soup"]\nat_least = 2\n',
        HEAD + TOPIC + RULE + 'kind = "keywords"\nwords = ["soup"]\nat_last = 1\n',
        HEAD + TOPIC + RULE + 'kind = "patterns"\npatterns = ["("]\n',
        HEAD + TOPIC + RULE + 'kind = "identifiers"\nkinds = ["shoe_size"]\n',
        HEAD + TOPIC + RULE + 'kind = "seeds"\nthreshold = 1.0\nphrases = ["soup"]\n',
        HEAD + TOPIC + RULE + 'kind = "unread"\nleast = 2\nwords = ["the"]\n',
        HEAD + TOPIC + RULE + 'kind = "all_of"\nrules = []\n',
        HEAD + TOPIC.replace("recipes", '"My Recipes"'),
    ],
)
def test_what_is_not_a_policy_is_refused(text: str, embedder: StaticEmbedder) -> None:
    with pytest.raises(UsageError, match="the file"):
        parse_policy(text.encode(), "the file", embedder)


@pytest.mark.parametrize("name", ["nothing-here", "../floor", "/etc/passwd", "", "missing.toml"])
def test_a_name_that_is_no_policy(name: str) -> None:
    with pytest.raises(UsageError):
        read_policy(name)


def test_a_path_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(HEAD)
    assert read_policy(tmp_path / "mine.toml") == HEAD.encode()
