"""The client that an app embeds: the memories of one subject in one vault.

Invariants
- A client belongs to one subject. It cannot read the data of another subject, and no call deletes everything.
- A declared topic can only tighten: a text that the policy places as private stays private.
- A simulated vault is refused, because its noise follows from a seed and protects nothing.
- The keystore is never downgraded: `auto` uses the operating system's keyring, or raises an error.
- Only `learn`, `train`, `blocks.migrate` and `generate` load torch.
- Several threads can call `generate` at the same time. Each gets the answer to its own prompt.
- Reading a stream after `close`, or after an erasure, raises an error.
- A client opened with `write=False` changes nothing.
- Any number of programs and threads can use a vault at the same time. A change waits for its turn; see `timeout`.
- A worker that is forked after `open` opens the vault again by itself when it first uses the client. It asks for the
  passphrase again.

    with Client.open("ana", keystore="passphrase", ask=getpass.getpass) as client:
        client.add("The new tablets go with breakfast.", topic="health")
        print(client.search("When do I take them?", k=1)[0].text)
"""

import functools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
from numpy.typing import NDArray

from fedmem.device.retraining import Retrainer
from fedmem.errors import NothingMatched, Refused, UsageError, VersionMismatch
from fedmem.policy.policy import Decision, Policy, Topic
from fedmem.policy.text import check_text
from fedmem.routing.embedder import Embedder, StaticEmbedder
from fedmem.routing.router import route
from fedmem.sdk.egress import Egress
from fedmem.sdk.opening import Ask, Keystore, open_release, open_vault
from fedmem.sdk.places import vault_root
from fedmem.sdk.privacy import Privacy
from fedmem.sdk.views import Blocks, Erase
from fedmem.storage import forks
from fedmem.vault.opening import TIMEOUT
from fedmem.vault.vault import BlockInfo, NewRecord, Vault

if TYPE_CHECKING:
    from fedmem.device.answering import Answerer
    from fedmem.device.training_sessions import SessionResult, TrainingStatus
    from fedmem.privacy.plan import PrivacyPlan
    from fedmem.training.release import Release

__all__ = ["AddedRecord", "Ask", "Client", "Hit", "Keystore"]


@dataclass(frozen=True)
class AddedRecord:
    """A stored record.

    Attributes:
        id: Random id of the record.
        decision: The decision that placed it.
    """

    id: str
    decision: Decision


@dataclass(frozen=True)
class Hit:
    """A record that a search returned.

    Attributes:
        id: Random id of the record.
        text: Text of the record.
        topic: Name of its topic; None if it has none.
        score: Cosine similarity to the query, in [-1, 1].
    """

    id: str
    text: str
    topic: str | None
    score: float


class Client:
    """The memories of one subject, used as a context manager. The module's docstring lists the invariants.

    Args:
        vault: The open vault, which the client closes.
        policy: The policy that places texts.
        release: The release that routes texts; `learn`, `train` and `generate` need it.
    """

    def __init__(self, vault: Vault, policy: Policy, release: "Release | None" = None) -> None:
        if vault.simulated:
            raise Refused(
                "This vault was made by a simulation, and its noise follows from a seed. An app must not use it."
            )
        self._opened, self._policy, self._release = vault, policy, release
        self._reopen: Callable[[], Vault] | None = None
        self._embedder: Embedder = StaticEmbedder() if release is None else release.embedder
        self._answerer: Answerer | None = None
        self._lock = RLock()
        self._release_to_close: Release | None = None
        self._at_fork = _AtFork(self)
        forks.watch(self._at_fork)

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
        timeout: float = TIMEOUT,
    ) -> "Client":
        """Open the vault of a subject. If there is none and `write` is set, create it.

        Any number of programs can open it, for reading and writing.

        Args:
            subject: Name of the subject.
            path: Folder of the vault. The default is the subject's folder below `fedmem.paths.vaults_dir()`.
            keystore: Keystore of a new vault. `auto` is the operating system's keyring.
            release: Folder of a release, or a loaded release. Texts are routed by it. `learn`, `train` and `generate`
                need it.
            ask: Returns the passphrase, if the keystore needs one.
            policy: Name of a policy, or its TOML file.
            write: Open the vault for writing.
            timeout: Longest wait for other programs that write, in seconds, now and before each change.

        Raises:
            KeystoreError: A key is missing, the passphrase is wrong, or `auto` finds no keyring.
            Busy: Other programs wrote for longer than `timeout`.
            Refused: The vault is simulated.
            UsageError: The embedder of the release is not installed.
            VersionMismatch: Vault or release have another format, or this fedmem has no such embedder.
            NothingMatched: `write` is False, and there is no vault.
            StorageError: The disk failed.
        """
        rules = Policy.load(policy)
        loaded_release = open_release(release)
        root = Path(path) if path is not None else vault_root(subject)
        vault = open_vault(subject, root, keystore, ask, write, timeout)
        try:
            client = cls(vault, rules, loaded_release)
        except BaseException:
            vault.close()
            raise
        client._reopen = functools.partial(open_vault, subject, root, keystore, ask, write, timeout)
        # A release that is passed as an object belongs to the caller, who closes it.
        client._release_to_close = loaded_release if isinstance(release, str | Path) else None
        return client

    @property
    def blocks(self) -> Blocks:
        """The private blocks."""
        return Blocks(self._vault, self._policy)

    @property
    def erase(self) -> Erase:
        """Erasures."""
        retrainer = Retrainer(self._release, self._policy) if self._release is not None else None
        return Erase(self._vault, retrainer)

    @property
    def privacy(self) -> Privacy:
        """The privacy ledger."""
        return Privacy(self._vault)

    @property
    def egress(self) -> Egress:
        """The messages that left the device."""
        return Egress(self._vault)

    def add(self, text: str, topic: str | None = None) -> AddedRecord:
        """Place a text by the policy, and store it sealed. It is durable when this method returns.

        Args:
            text: The text, not empty, at most 1 MiB in UTF-8.
            topic: Topic that the app declares. It can only tighten the placement.

        Raises:
            UsageError: The text is empty, too long or no valid text, or the topic is unknown. Nothing was added.
            VersionMismatch: The vault holds records of another embedder. Nothing was added.
        """
        if not check_text(text).strip():
            raise UsageError("There is no text to add.")
        vector_D = self._embedder.embed([text])[0]
        decision = self._policy.place(text, declared=topic)
        release = self._release.digest if self._release else ""
        record = NewRecord(text=text, topic=decision.topic, path=self._path(vector_D), vector=vector_D, release=release)
        return AddedRecord(self._vault.add_records([record])[0], decision)

    def search(self, query: str, k: int = 5) -> list[Hit]:
        """Return the records of this subject that are nearest to a query, best first.

        Args:
            query: The query text, at most 1 MiB in UTF-8.
            k: Most records to return, at least 1.

        Raises:
            UsageError: `k` is less than 1, or the query is too long or no valid text.
            VersionMismatch: The vault holds records of another embedder.
        """
        if k < 1:
            raise UsageError("A search needs k of at least 1.")
        matches = self._vault.search(self._embedder.embed([check_text(query)])[0], k)
        return [Hit(record.id, record.text, record.topic, float(score)) for record, score in matches]

    def learn(self, topic: str, plan: "PrivacyPlan | None" = None) -> BlockInfo:
        """Train the private block of a topic on its records.

        Guarantees: the block is (ε, δ)-differentially private for each record, as docs/privacy.md states. The topic's
        budget is charged durably before the first step (I6).

        Args:
            topic: Name of a topic of the policy.
            plan: Privacy plan. The default is the default plan at the topic's ε of the policy.

        Returns:
            The facts of the new block.

        Raises:
            NothingMatched: The policy has no such topic, or the topic has no records.
            BudgetExceeded: The run would exceed the topic's budget. Nothing is charged.
            Refused: The client has no release, the topic has more records than the plan's cap, or the plan's δ is
                above the topic's.
            Busy: Another thread trains the topic.
        """
        from fedmem.device.learning import default_plan, learn_topic

        policy_topic = self._topic(topic)
        return learn_topic(self._vault, self._need_release(), policy_topic, plan or default_plan(policy_topic.epsilon))

    def train(
        self,
        topic: str,
        plan: "PrivacyPlan | None" = None,
        *,
        deadline: datetime | None = None,
        memory: int | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> "SessionResult":
        """Train the private block of a topic, as `learn`, in a session that can pause.

        The session ends when the training is done, at the deadline, or when `stop()` returns True. The next call
        continues a paused training.

        Args:
            topic: Name of a topic of the policy.
            plan: Privacy plan. The default is the plan of the paused training, or the default plan of the topic.
            deadline: Time to pause, with a time zone.
            memory: Most memory of the process, in bytes.
            stop: Called between steps. The training pauses when it returns True.

        Returns:
            The state of the training at the end of the session.

        Raises:
            Refused: Records or plan changed after the pause. The run has then failed and stays charged.
            FedmemError: Any other error of `fedmem.device.training_sessions.train`.
        """
        from fedmem.device.training_sessions import Limits, train

        limits = Limits(deadline, memory)
        return train(self._vault, self._need_release(), self._topic(topic), plan, limits, stop=stop)

    def trainings(self) -> "list[TrainingStatus]":
        """Return the state of each training: waiting, running, paused, done or failed."""
        from fedmem.device.training_sessions import training_statuses

        return training_statuses(self._vault)

    def cancel(self, name: str) -> "TrainingStatus":
        """End a running or paused training, which then counts as failed and stays charged.

        Args:
            name: Run id, or topic.

        Returns:
            The status of the ended training.

        Raises:
            NothingMatched: No training of this name is running or paused.
            UsageError: The topic has several such trainings. Name one by its run id.
            Busy: The training did not finish its step in time.
        """
        from fedmem.device.training_sessions import cancel

        return cancel(self._vault, name)

    @overload
    def generate(self, prompt: str, max_new_tokens: int = ..., stream: Literal[False] = ...) -> str: ...

    @overload
    def generate(self, prompt: str, max_new_tokens: int = ..., *, stream: Literal[True]) -> Iterator[str]: ...

    def generate(self, prompt: str, max_new_tokens: int = 64, stream: bool = False) -> str | Iterator[str]:
        """Continue a prompt, with the shared blocks of its path and the private block of its topic.

        The model runs in this process. Nothing is sent.

        Args:
            prompt: Text to continue, at most 1 MiB in UTF-8.
            max_new_tokens: Most tokens of the answer, at least 1.
            stream: Return an iterator over pieces of the answer. All blocks are read before this method returns.
                Reading a piece raises UsageError after `close`, and Busy after an erasure.

        Raises:
            UsageError: The prompt is too long or no valid text, or `max_new_tokens` leaves no room for it.
            Refused: The client has no release.
            VersionMismatch: The topic's block belongs to another release than the client.
        """
        with self._lock:
            pieces = self._pieces(prompt, max_new_tokens)
        return pieces if stream else "".join(pieces)

    def _pieces(self, prompt: str, limit: int) -> Iterator[str]:
        from fedmem.device.answering import Answerer

        vector_D = self._embedder.embed([check_text(prompt)])[0]
        blocks = self._matching(self._policy.place(prompt).topic)
        self._answerer = self._answerer or Answerer(self._need_release())
        return self._answerer.answer(prompt, self._path(vector_D), self._vault, blocks, limit)

    def _matching(self, topic: str | None) -> list[BlockInfo]:
        """Return the newest block of a topic on the client's release, as a list of at most one."""
        from fedmem.device.private_fetch import block_for

        block = block_for(self._vault, topic, self._need_release().digest)
        releases = [info.release for info in self._vault.blocks() if info.topic == topic]
        if block is None and releases:
            raise VersionMismatch(
                f"The topic's block belongs to release {releases[-1][:12]}. Open the client with it, or learn again."
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
            raise Refused("Learning and answering need a release. Open the client with Client.open(…, release=FOLDER).")
        return self._release

    def close(self) -> None:
        """Close the vault, and the bank of a release that `open` loaded. This frees all locks, keys and files."""
        with self._lock:
            self._answerer = None
            release = self._release_to_close
            if release is not None and "bank" in vars(release):  # a bank is opened only when it is first read
                release.bank.close()
                self._release_to_close = None
            self._opened.close()

    @property
    def _vault(self) -> Vault:
        """The vault, opened again in a worker that was forked after `open`."""
        if self._opened.core.lock.is_inherited and self._reopen is not None:
            with self._lock:
                if self._opened.core.lock.is_inherited:
                    self._opened = self._reopen()
        return self._opened

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _AtFork:
    """Gives a client in a forked child a lock of its own: another thread of the parent may have held the lock."""

    def __init__(self, client: Client) -> None:
        self._client = weakref.ref(client)

    def disown(self) -> None:
        client = self._client()
        if client is not None:
            client._lock, client._answerer = RLock(), None
            forks.watch(self)  # for the children of this child
