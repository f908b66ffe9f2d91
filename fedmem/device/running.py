"""Run a device: the vault process of one vault, with or without a SuperNode of its own.

Invariants
- Release, terms and the device's account are checked before the vault's socket exists.
- A plan that samples is charged to the device's account before the socket exists.
- The vault process ends when its SuperNode ends, and the SuperNode ends when the vault process ends.

    running = Running(open_vault, policy, agreement, release)
    running.run(until=stopped, ready=lambda runtime, rounds: print(runtime.folder), options=Options("127.0.0.1:9092"))
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedmem.device import supernode
from fedmem.device.runtime_folder import runtime_folder
from fedmem.device.served_vault import ServedVault
from fedmem.device.supernode import Options
from fedmem.device.vault_process import listening
from fedmem.errors import RemoteError
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.release_shapes import shapes_of
from fedmem.federation.runtime import Runtime
from fedmem.federation.terms import Agreement
from fedmem.policy.policy import Policy
from fedmem.vault.vault import Vault


@dataclass(frozen=True)
class Running:
    """One device.

    Attributes:
        root: the vault's folder.
        open_vault: opens the vault for reading; it is called again after an erasure.
        policy: places records each time they are requested.
        agreement: the terms of the federation.
        release: folder of the release that the terms name.
    """

    root: Path
    open_vault: Callable[[], Vault]
    policy: Policy
    agreement: Agreement
    release: Path

    def run(self, until: Callable[[], bool], ready: Callable[[Runtime, int], None], options: Options | None) -> int:
        """Serve until `until()` is true, and return the number of released answers.

        Args:
            until: is called several times a second.
            ready: is called when the socket listens, before the SuperNode starts, with the number of the plan's rounds
                that the device's account grants.
            options: options of the SuperNode; if None, the operator starts one.

        Raises:
            Busy: another vault process runs for this vault, or the vault is being erased.
            NothingMatched, VerificationFailed, VersionMismatch: release and terms do not fit.
            BudgetExceeded: the device's account grants no round of this plan.
            Refused: the policy does not allow the plan.
            VerificationFailed: the egress ledger, which holds the account, was edited or shortened.
            RemoteError: the SuperNode ended.
            StorageError: the socket or the runtime folder cannot be made.
            FedmemError: any error of `open_vault`.
        """
        shapes = shapes_of(self.release, self.agreement)
        with contextlib.ExitStack() as stack:
            vault = stack.enter_context(ServedVault(self.open_vault, self.policy))
            runtime = stack.enter_context(runtime_folder(self.root, self.agreement, shapes, self.release))
            granted = _joined(vault, self.agreement.plan)  # by the only vault process of this vault
            server = stack.enter_context(listening(runtime, vault, training=self.agreement.rounds.deadline))
            ready(runtime, granted)
            node = stack.enter_context(supernode.supernode(runtime, options)) if options else None
            server.serve(lambda: until() or (node is not None and node.poll() is not None))
            if node is not None and node.poll() is not None and not until():
                raise RemoteError(f"The SuperNode ended with code {node.returncode}. Its output says why.")
        return server.released


def _joined(vault: ServedVault, plan: DevicePlan) -> int:
    """Charge the device's account for a plan that samples, and return the number of the plan's rounds it is granted."""
    account = vault.account()
    account.check_joining(plan)
    entry = account.joining_entry(plan)
    if entry is not None:
        vault.enter(entry)
        vault.settle()
    return account.granted(plan)
