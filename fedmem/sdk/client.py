"""The client that an app embeds: one subject, one vault, one door to its memories.

Invariants
- A client belongs to one subject; there is no read across subjects and no call that deletes everything.
- A declared topic only tightens: what the policy calls private stays private.
- A simulated vault is refused: its noise follows from a seed and protects nobody.
- The keystore is chosen, never downgraded: `auto` is the operating system's keyring or a refusal.
- Only `learn`, `train`, `blocks.migrate` and `generate` load torch.
- Threads may call `generate` at once; each gets the answer to its own prompt. A stream that is read after `close`, or
  after an erasure, raises.
- A client that is opened with `write=False` changes nothing, and goes on while another program trains or adds.

    with Client.open("ana", keystore="passphrase", ask=getpass.getpass) as client:
        client.add("The new tablets go with breakfast.", topic="health")
        print(client.search("When do I take them?", k=1)[0].text)
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from fedmem.device.retraining import Retrainer
from fedmem.errors import KeystoreError, NothingMatched, Refused, UsageError, VersionMismatch
from fedmem.policy.policy import Decision, Policy, Topic
from fedmem.routing.embedder import Embedder, StaticEmbedder
from fedmem.routing.router import route
from fedmem.sdk.doctor import has_keyring
from fedmem.sdk.egress import Egress
from fedmem.sdk.places import vault_root
from fedmem.sdk.views import Blocks, Erase, Privacy
from fedmem.vault.crypto.header import NAME
from fedmem.vault.opening import VaultExists
from fedmem.vault.vault import BlockInfo, NewRecord, Vault

if TYPE_CHECKING:
    from fedmem.device.answering import Answerer
    from fedmem.device.training_sessions import SessionResult, TrainingStatus
    from fedmem.privacy.plan import PrivacyPlan
    from fedmem.training.release import Release

Keystore = Literal["auto", "keyring", "passphrase", "keyfile"]
Ask = Callable[[], str]


@dataclass(frozen=True)
class AddedRecord:
    """A stored record and the decision that placed it."""

    id: str
    decision: Decision


@dataclass(frozen=True)
class Hit:
    """One record that a search found; `score` is the cosine, in [-1, 1]."""

    id: str
    text: str
    topic: str | None
    score: float


class Client:
    """The memories of one subject. Use as a context manager; see the module for what is guaranteed."""

    def __init__(self, vault: Vault, policy: Policy, release: "Release | None" = None) -> None:
        if vault.simulated:
            raise Refused("This vault was made by a simulation, its noise follows from a seed; an app must not use it.")
        self._vault, self._policy, self._release = vault, policy, release
        self._embedder: Embedder = StaticEmbedder()
        self._answerer: Answerer | None = None
        self._binding = Lock()
        self._owned: Release | None = None
        self.blocks = Blocks(vault, policy)
        self.erase = Erase(vault, Retrainer(release, policy) if release is not None else None)
        self.privacy = Privacy(vault)
        self.egress = Egress(vault)

    @classmethod
    def open(
        cls,
        subject: str,
        path: str | Path | None = None,
        keystore: Keystore = "auto",
        release: "str | Path | Release | None" = None,
        ask: Ask | None = None,
        policy: str | Path = "default",
        write: bool = True,
        timeout: float = 30.0,
    ) -> "Client":
        """Open the vault of `subject`, made where there is none; `ask` gives the passphrase where one is needed.

        `release` (a folder, or one already loaded) is what texts are routed by; `generate` and `learn` need it.
        One program writes at a time; any number open with `write=False`, to search and to generate. A program that
        wants to write waits for another one up to `timeout` seconds, then raises Busy.
        Raises KeystoreError, Busy, Refused (simulated vault), VersionMismatch, StorageError.
        """
        rules = Policy.load(policy)
        opened = open_release(release)
        # What is given as an object belongs to the caller.
        owned = opened if isinstance(release, str | Path) else None
        root = Path(path) if path is not None else vault_root(subject)
        vault = open_vault(subject, root, keystore, ask, write, timeout)
        try:
            client = cls(vault, rules, opened)
        except BaseException:
            vault.close()
            raise
        client._owned = owned
        return client

    def add(self, text: str, topic: str | None = None) -> AddedRecord:
        """Place `text` by the policy and store it, sealed. `topic` is what the app declares; it can only tighten.

        Raises UsageError for an empty text or an unknown topic.
        """
        if not text.strip():
            raise UsageError("There is no text to add.")
        vector_D = self._embedder.embed([text])[0]
        decision = self._policy.place(text, vector=vector_D, declared=topic)
        release = self._release.digest if self._release else ""
        record = NewRecord(text=text, topic=decision.topic, path=self._path(vector_D), vector=vector_D, release=release)
        return AddedRecord(self._vault.add_records([record])[0], decision)

    def search(self, query: str, k: int = 5) -> list[Hit]:
        """The `k` records of this subject nearest to `query`, best first."""
        if k < 1:
            raise UsageError("A search needs k of at least 1.")
        found = self._vault.search(self._embedder.embed([query])[0], k)
        return [Hit(record.id, record.text, record.topic, float(score)) for record, score in found]

    def learn(self, topic: str, plan: "PrivacyPlan | None" = None) -> BlockInfo:
        """Train the private block of `topic` on its records, under record-level DP; the budget is charged first (I6).

        Without `plan`, the default plan at the topic's ε of the policy. Raises NothingMatched for an unknown topic.
        """
        from fedmem.device.learning import default_plan, learn_topic

        known = self._topic(topic)
        return learn_topic(self._vault, self._need_release(), known, plan or default_plan(known.epsilon))

    def train(
        self,
        topic: str,
        plan: "PrivacyPlan | None" = None,
        *,
        deadline: datetime | None = None,
        memory: int | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> "SessionResult":
        """`learn` in sessions: until it is done, the deadline (with its time zone) has come, or `stop()` says so.

        `memory` bounds the process, in bytes. The next call goes on where this one paused, without `plan` on its plan;
        if records or plan changed since, it raises Refused: the run has then failed and stays charged. Raises as
        `fedmem.device.training_sessions.train`.
        """
        from fedmem.device.training_sessions import Limits, train
        from fedmem.device.vault_access import ExclusiveAccess

        limits = Limits(deadline, memory)
        return train(ExclusiveAccess(self._vault), self._need_release(), self._topic(topic), plan, limits, stop=stop)

    def trainings(self) -> "list[TrainingStatus]":
        """How each training stands: waiting, running, paused, done or failed."""
        from fedmem.device.training_sessions import trainings

        return trainings(self._vault)

    def cancel(self, name: str) -> "TrainingStatus":
        """End a training (run id or topic) that runs or is paused: it has failed then, and stays charged."""
        from fedmem.device.training_sessions import cancel
        from fedmem.device.vault_access import ExclusiveAccess

        return cancel(ExclusiveAccess(self._vault), name)

    @overload
    def generate(self, prompt: str, max_new_tokens: int = ..., stream: Literal[False] = ...) -> str: ...

    @overload
    def generate(self, prompt: str, max_new_tokens: int = ..., *, stream: Literal[True]) -> Iterator[str]: ...

    def generate(self, prompt: str, max_new_tokens: int = 64, stream: bool = False) -> str | Iterator[str]:
        """Continue `prompt` with the shared blocks of its path and the private block of its topic, in this process.

        Args:
            prompt: text to continue.
            max_new_tokens: the most tokens of the answer, at least 1.
            stream: return the pieces as they are generated. The blocks are read at once; a piece raises UsageError
                after `close` and Busy after an erasure.

        Raises:
            VersionMismatch: the topic's block belongs to another release than the one given to `open`.
        """
        with self._binding:
            pieces = self._pieces(prompt, max_new_tokens)
        return pieces if stream else "".join(pieces)

    def _pieces(self, prompt: str, limit: int) -> Iterator[str]:
        from fedmem.device.answering import Answerer

        vector_D = self._embedder.embed([prompt])[0]
        blocks = self._matching(self._policy.place(prompt, vector=vector_D).topic)
        self._answerer = self._answerer or Answerer(self._need_release())
        return self._answerer.answer(prompt, self._path(vector_D), self._vault, blocks, limit)

    def _matching(self, topic: str | None) -> list[BlockInfo]:
        """The newest block of `topic` on the client's release, if there is one."""
        from fedmem.device.private_fetch import block_for

        block = block_for(self._vault, topic, self._need_release().digest)
        others = [found.release for found in self._vault.blocks() if found.topic == topic]
        if block is None and others:
            raise VersionMismatch(
                f"The topic's block belongs to release {others[-1][:12]}; open the client with it, or learn again."
            )
        return [block] if block else []

    def _topic(self, name: str) -> Topic:
        if name not in self._policy.topics:
            raise NothingMatched("The policy has no topic of that name; `Policy.topics` lists them.")
        return self._policy.topics[name]

    def _path(self, vector_D: NDArray[np.float32]) -> tuple[int, ...]:
        if self._release is None:
            return ()
        return tuple(int(node) for node in route(self._release.tree, vector_D)[0])

    def _need_release(self) -> "Release":
        if self._release is None:
            raise Refused("Learning and answering need a release: Client.open(…, release=FOLDER).")
        return self._release

    def close(self) -> None:
        """Close the vault, and the bank of a release that was opened here; locks, keys and files are let go."""
        with self._binding:
            self._answerer = None
            if self._owned is not None and "bank" in vars(self._owned):  # a bank that nobody read was never opened
                self._owned.bank.close()
                self._owned = None
            self._vault.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_release(release: "str | Path | Release | None") -> Any:
    """The release as an object; loaded where a folder is given."""
    if not isinstance(release, str | Path):
        return release
    from fedmem.training.release import Release

    return Release.load(Path(release)).routed_by(StaticEmbedder().digest)


def open_vault(
    subject: str, root: Path, keystore: Keystore, ask: Ask | None, write: bool = True, timeout: float = 0.0
) -> Vault:
    """Open the vault at `root`, or make it with the keystore that was chosen.

    Of two programs that find no vault one makes it; the other waits for that up to `timeout` seconds and opens it.
    """
    if not (root / NAME).is_file() and write:
        with suppress(VaultExists):
            chosen = chosen_keystore(keystore)
            return Vault.create(root, subject=subject, keystore=chosen, ask=ask, timeout=timeout)
    return Vault.open(root, subject=subject, ask=ask, write=write, timeout=timeout)


def chosen_keystore(keystore: Keystore) -> Literal["keyring", "passphrase", "keyfile"]:
    """The backend that `keystore` means here. Raises KeystoreError where `auto` finds no real keyring."""
    if keystore != "auto":
        return keystore
    if has_keyring():
        return "keyring"
    raise KeystoreError(
        "This machine has no OS keyring. Choose: keystore='passphrase' with ask=…, or keystore='keyfile' "
        "(a key file in your home folder, which protects against a thief of the vault alone)."
    )
