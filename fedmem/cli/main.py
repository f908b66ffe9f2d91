"""`fedmem`: nouns then verbs, exit codes, and the one place where errors become sentences.

Invariants
- Every deliberate error ends with its own exit code and one sentence on stderr, never a traceback.
- An unexpected error ends with 1 and names its class only: its text may hold private data. `--debug` shows it.
- A full or read-only disk ends with 11, a usage error with 2, an interrupt with 130.
- Output that cannot be written changes no exit code of an error or of a command that changed something. A command
  that only shows ends with 11, or with 0 if the reader of a pipe left.

>>> " ".join(sorted(NOUNS))
'anchor backup bank block client doctor erase eval keys path privacy receipt route sim vault'
"""

import errno
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import click

from fedmem import __version__
from fedmem.cli.lazy import LazyGroup, Nouns
from fedmem.cli.output import CommandSession, say, write_error
from fedmem.cli.streams import flush, prepare
from fedmem.errors import FedmemError, Refused, StorageError, UsageError
from fedmem.platforms import require_supported

NOUNS: Nouns = {
    "anchor": ("fedmem.cli.anchor:anchor", "Train the small model that every bank goes with."),
    "backup": ("fedmem.cli.backup:backup", "Backups of a vault: create, list, verify, restore."),
    "bank": ("fedmem.cli.bank:bank", "Shared banks: build, train, show, verify."),
    "block": ("fedmem.cli.block:block", "Private blocks of a vault: list, show, migrate, delete."),
    "client": ("fedmem.cli.client:client", "Train private blocks on this device; see what left it."),
    "doctor": ("fedmem.cli.doctor:doctor", "Check that this machine can keep what fedmem promises."),
    "erase": ("fedmem.cli.erase:erase", "Erasures of a vault: plan, run, verify, resume."),
    "eval": ("fedmem.cli.evaluate:evaluate", "Measurements: is what was erased forgotten?"),
    "keys": ("fedmem.cli.keys:keys", "Keys of a vault, and recovery kits."),
    "path": ("fedmem.cli.path:path", "Where fedmem keeps things on this machine."),
    "privacy": ("fedmem.cli.privacy:privacy", "Privacy spent, computed from the ledger."),
    "receipt": ("fedmem.cli.receipt:receipt", "Signed receipts of erasures: show, verify, export."),
    "route": ("fedmem.cli.route:route", "Where a text would be placed, and by which rule."),
    "sim": ("fedmem.cli.sim:sim", "Simulated federations: run, list, show."),
    "vault": ("fedmem.cli.vault:vault", "Check a vault; save what opens of a damaged one."),
}
EXTRAS = {
    **dict.fromkeys(("torch", "transformers", "dp_accounting", "scipy"), "model"),
    **dict.fromkeys(("opacus", "faiss"), "train"),
    **dict.fromkeys(("faker", "matplotlib"), "sim"),
    "flwr": "fl",
    "ray": "ray",
}
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}


class BrokenPipe(Exception):
    """Carries a broken pipe past click, which would exit with 1 and without a word."""

    def __init__(self, error: BrokenPipeError) -> None:
        super().__init__()
        self.error = error


class Root(LazyGroup):
    """The root group: runs a command and turns how it ended into an exit code."""

    def main(self, args: Any = None, prog_name: str | None = None, *_: Any, **extra: Any) -> Any:
        """Run the command line and exit with the code of docs/design.md, §11."""
        prepare()
        words = list(sys.argv[1:] if args is None else args)
        # A usage error can come before any option is read, so the flag is looked for in the words too.
        state = CommandSession(json="--json" in words)
        extra["standalone_mode"] = False
        sys.exit(guarded(lambda: super(Root, self).main(words, prog_name or "fedmem", obj=state, **extra), state))

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse the words; the root's own help is printed here."""
        try:
            return super().make_context(*args, **extra)
        except BrokenPipeError as error:
            raise BrokenPipe(error) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise BrokenPipe(error) from error


def guarded(run: Callable[[], Any], state: CommandSession) -> int:
    """Run, and give the exit code; errors and output that failed are told here and nowhere else."""
    code = ended(run, state)
    left = flush(sys.stdout)  # else the interpreter's own flush would change the code
    flush(sys.stderr)
    state.unwritten = state.unwritten or left
    return code if state.unwritten is None else unwritten(state.unwritten, code, state)


def ended(run: Callable[[], Any], state: CommandSession) -> int:
    """Run, tell the error if there is one, and give the exit code."""
    try:
        code = run()
        return code if isinstance(code, int) else 0
    except BrokenPipe as broken:
        error: Exception = broken.error
    except Exception as caught:  # noqa: BLE001 -- the last door: everything becomes an exit code
        error = caught
    if isinstance(error.__cause__, KeyboardInterrupt):  # click turns an interrupt into its Abort
        say("Interrupted. What was acknowledged is kept; the same command goes on from there.")
        return 130
    if isinstance(error, OSError) and of_click(error):
        state.unwritten = error
        return 0
    return explained(error, state)


def of_click(error: OSError) -> bool:
    """Return True if click could not print a help, a version or a question."""
    return any(frame.f_code is click.echo.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))


def explained(error: Exception, state: CommandSession) -> int:
    """Tell one error and give its exit code."""
    if state.debug and not isinstance(error, FedmemError | click.ClickException):
        raise error
    known = translated(error)
    if known is None:
        known = FedmemError(
            f"Unexpected {type(error).__name__}: a bug in fedmem. `fedmem --debug …` shows the traceback."
        )
    write_error(known, state)
    return known.exit_code


def unwritten(error: OSError, code: int, state: CommandSession) -> int:
    """Tell that stdout did not take the data, and give the exit code."""
    if isinstance(error, BrokenPipeError) and not (state.changes or state.again):
        return code
    reason = os.strerror(error.errno or 0)
    if state.changes or state.again or code:
        say(f"The output could not be written ({reason}). {state.again or 'What the command did stands.'}")
        return code
    say(f"The output could not be written ({reason}). Repeat the command where it can.")
    return StorageError.exit_code


def translated(error: Exception) -> FedmemError | None:
    """The typed error for `error`; None where it is a bug."""
    if isinstance(error, FedmemError):
        return error
    if isinstance(error, click.Abort):
        return Refused("Not confirmed, nothing was done.")
    if isinstance(error, click.ClickException):
        hint = (
            f" `{error.ctx.command_path} --help` shows how."
            if isinstance(error, click.UsageError) and error.ctx
            else ""
        )
        return UsageError(error.format_message() + hint)
    if isinstance(error, ModuleNotFoundError) and (missing := (error.name or "").partition(".")[0]) in EXTRAS:
        return UsageError(f"This needs {missing}, which is not installed: `pip install 'fedmem[{EXTRAS[missing]}]'`.")
    if isinstance(error, OSError) and error.errno in DISK:
        return StorageError(
            f"The disk refused: {os.strerror(error.errno or 0)}. Free space or mount it writable, then repeat."
        )
    return None


@click.command(
    cls=Root,
    lazy=NOUNS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: fedmem sim run quickstart",
)
@click.version_option(__version__, "-V", "--version", prog_name="fedmem")
@click.option("--debug", is_flag=True, help="Show the traceback of an unexpected error.")
@click.pass_obj
def main(state: CommandSession, debug: bool) -> None:
    """Memories for language models: shared knowledge in a bank, private knowledge in sealed blocks."""
    state.debug = debug
    require_supported()


if __name__ == "__main__":
    main()
