"""Find public text that a release was never trained on, by the place of the release.

Invariants
- The text is what the maker of the release held out. For a simulation run, scenario and seed give it. For `bank train`
  on the installed corpus, the corpus's own rule gives it. Otherwise, or if the text is missing, there is none.
- The result is a function of the folder's content and of the installed corpus. No private text is generated.

    public = load_heldout(Path("runs/quickstart-0001/releases/DIGEST"))
"""

import contextlib
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from fedmem.coordinator.build import RESULT
from fedmem.errors import UsageError
from fedmem.policy.policy import Policy
from fedmem.sim import population, scenario
from fedmem.sim.folder import Facts, RunFolder, read_json
from fedmem.sim.sources.texts import WIKIPEDIA, public_texts
from fedmem.training.corpus import Corpus

MOST_TEXTS = 64
"""The greatest number of texts, evenly drawn; a mean needs no more."""


def load_heldout(release: Path) -> list[str]:
    """Return the held-out public text of a release; an empty list where none is known.

    Args:
        release: the folder of the release.

    Returns:
        At most `MOST_TEXTS` texts.
    """
    out = release.resolve().parent.parent
    with contextlib.suppress(UsageError):  # a package or file may have been removed
        if (out / RESULT).exists():
            return _thin_out(_heldout_of_corpus(read_json(out / RESULT)["inputs"].get("corpus", "")))
        # The folder of a `bank train` has an inputs.json too, without a scenario.
        if (run := RunFolder(out)).is_run() and "scenario" in run.inputs():
            return _thin_out(_heldout_of_run(run.inputs()))
    return []


def _heldout_of_run(inputs: Facts) -> list[str]:
    corpus = Path(inputs["corpus"]) if inputs["corpus"] else None
    # Private records do not change the split of public ones, and generating them takes most of the time.
    public_scenario = replace(scenario.from_dict(inputs["scenario"]), private=[])
    return population.build(public_scenario, inputs["seed"], corpus, Policy.load()).heldout


def _heldout_of_corpus(digest: str) -> list[str]:
    corpus = Corpus.of(public_texts(WIKIPEDIA)[0])
    return list(corpus.heldout) if corpus.digest == digest else []


def _thin_out(texts: list[str]) -> list[str]:
    if not texts:
        return []
    return [texts[n] for n in np.unique(np.linspace(0, len(texts) - 1, MOST_TEXTS).astype(np.int64))]
