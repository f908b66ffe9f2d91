"""The training of a device on shareable texts, in the network-facing process or in a simulation.

Invariants
- It depends on (parameters, release, terms, texts, seed) alone. No module of a vault is loaded.
- A device without shareable texts changes nothing.

    device = Device(index, port, plan, shapes, make_release_train(folder, agreement, port.shareable))
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fedmem.errors import VersionMismatch
from fedmem.federation import terms, wire
from fedmem.federation.device import LocalTrain, TrainConfig
from fedmem.federation.terms import Agreement, LocalSettings
from fedmem.routing.router import route
from fedmem.training.local import Federated
from fedmem.training.packing import Packed, pack
from fedmem.training.release import Release
from fedmem.training.sequences import encode
from fedmem.training.settings import Settings


def make_local_train(
    part: Federated, local: LocalSettings, steps_by_round: Sequence[int], packed: Packed, paths_MP: np.ndarray
) -> LocalTrain:
    """Return the local training of one device on its packed sequences; without any it changes nothing.

    Args:
        part: anchor and bank, with the federated parts marked. Training changes it.
        local: settings of local training that no request carries.
        steps_by_round: local steps of each round of the plan, from round 1.
        packed: the device's sequences, M rows.
        paths_MP: path of each packed row, one block number for each level.
    """

    def train(params: wire.Params, config: TrainConfig) -> wire.Params:
        rate = terms.rate_left(steps_by_round, local.final, config.round)
        settings = Settings(
            steps=config.steps if len(packed) else 0,
            batch=config.batch,
            lr=config.learning_rate * rate,
            final=1.0,
            warmup=local.warmup,
            memory_lr=config.memory_learning_rate * rate,
            eps=local.eps,
        )
        return part.train(params, packed, paths_MP, settings, config.seed)

    return train


def load_federated_part(folder: Path, agreement: Agreement) -> Federated:
    """Return anchor and bank of the release in `folder`, with the federated parts marked.

    Args:
        folder: folder of the release.
        agreement: the terms, which name the release and its federated parts.

    Raises:
        NothingMatched: there is no release in `folder`.
        VerificationFailed: a file of the release has changed.
        VersionMismatch: the release is another one than the terms name.
    """
    return _part(_checked(folder, agreement), agreement)


def make_release_train(folder: Path, agreement: Agreement, texts: Callable[[], Sequence[str]]) -> LocalTrain:
    """Return local training that loads the release and calls `texts` when a round begins.

    The returned function raises as `load_federated_part`, and what `texts` raises.

    Args:
        folder: folder of the release that the terms name.
        agreement: the terms, which name the release and its federated parts.
        texts: returns the shareable texts of this device.
    """

    def train(params: wire.Params, config: TrainConfig) -> wire.Params:
        release = _checked(folder, agreement)
        part = _part(release, agreement)
        packed, paths_MP = _packed(release, list(texts()), agreement.local.length)
        return make_local_train(part, agreement.local, agreement.steps_by_round, packed, paths_MP)(params, config)

    return train


def _checked(folder: Path, agreement: Agreement) -> Release:
    release = Release.load(folder)
    if release.digest != agreement.release:
        raise VersionMismatch(f"The terms name another release than the one in {folder}. Fetch the one they name.")
    return release


def _part(release: Release, agreement: Agreement) -> Federated:
    return Federated(release.anchor(), release.bank_state(), agreement.parts)


def _packed(release: Release, texts: list[str], length: int) -> tuple[Packed, np.ndarray]:
    """Return the texts packed by leaf cluster, and the path of each packed row."""
    sequences = encode(release.tokenizer, texts, length)
    paths_NP = route(release.tree, release.embedder.embed(texts))[sequences.document_N]
    packed = pack(sequences, paths_NP[:, -1])
    return packed, paths_NP[packed.first_M]
