"""`fedmem`: the root command. It turns errors into exit codes and sentences on stderr.

Invariants
- Every typed error ends with its own exit code and one sentence on stderr, never with a traceback.
- An unexpected error ends with 1. Only the name of its class is shown, because its text may contain private data.
  `--debug` shows the traceback.
- A full or read-only disk ends with 11, a usage error with 2, an interrupt with 130.
- If output cannot be written, the exit code of an error, or of a command that changed something, stays the same. A
  command that only shows data then ends with 11, or with 0 if the reader of a pipe closed it.

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
    "anchor": ("fedmem.cli.anchor:anchor", "Train the small model that a bank is built for."),
    "backup": ("fedmem.cli.backup:backup", "Backups of a vault: create, list, verify, restore."),
    "bank": ("fedmem.cli.bank:bank", "Shared banks: build, train, show, verify."),
    "block": ("fedmem.cli.block:block", "Private blocks of a vault: list, show, migrate, delete."),
    "client": ("fedmem.cli.client:client", "Train private blocks on this device; show what left it."),
    "doctor": ("fedmem.cli.doctor:doctor", "Check that this machine can keep the promises of fedmem."),
    "erase": ("fedmem.cli.erase:erase", "Erasures of a vault: plan, run, verify, resume."),
    "eval": ("fedmem.cli.evaluate:evaluate", "Measure if an erased block is forgotten."),
    "keys": ("fedmem.cli.keys:keys", "Keys of a vault, and recovery kits."),
    "path": ("fedmem.cli.path:path", "Show the folders of fedmem on this machine."),
    "privacy": ("fedmem.cli.privacy:privacy", "Show the privacy spent, computed from the ledger."),
    "receipt": ("fedmem.cli.receipt:receipt", "Signed receipts of erasures: show, verify, export."),
    "route": ("fedmem.cli.route:route", "Explain where a text would be placed, and by which rule."),
    "sim": ("fedmem.cli.sim:sim", "Simulated federations: run, list, show, compare."),
    "vault": ("fedmem.cli.vault:vault", "Check a vault; save the readable parts of a damaged one."),
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
    """A wrapper that carries a broken pipe past click. Click itself would exit with 1 and no message.

    Args:
        error: The broken pipe.
    """

    def __init__(self, error: BrokenPipeError) -> None:
        super().__init__()
        self.error = error


class Root(LazyGroup):
    """The root group. It runs a command and exits with the code of its result."""

    def main(self, args: Any = None, prog_name: str | None = None, *_: Any, **extra: Any) -> Any:
        """Run the command line, and exit with the code of docs/design.md, §11.

        Args:
            args: The arguments; None for those of this process.
            prog_name: Name of the program in messages.
            extra: Further arguments of `click.Command.main`.

        Raises:
            SystemExit: Always, with the code.
        """
        prepare()
        words = list(sys.argv[1:] if args is None else args)
        # A usage error can come before click reads the options, so the words are searched for the flag.
        state = CommandSession(json="--json" in words)
        extra["standalone_mode"] = False
        sys.exit(run_guarded(lambda: super(Root, self).main(words, prog_name or "fedmem", obj=state, **extra), state))

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse the words. Click prints the root's own help in this step.

        Args:
            args: As for click.
            extra: As for click.

        Raises:
            BrokenPipe: The output was closed.
        """
        try:
            return super().make_context(*args, **extra)
        except BrokenPipeError as error:
            raise BrokenPipe(error) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        Args:
            ctx: The context of click.

        Raises:
            BrokenPipe: The output was closed.
        """
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise BrokenPipe(error) from error


def run_guarded(run: Callable[[], Any], state: CommandSession) -> int:
    """Run a command and return its exit code. Report errors and failed output on stderr.

    Args:
        run: The command, without arguments.
        state: The session of the command.
    """
    code = run_reported(run, state)
    flush_error = flush(sys.stdout)  # otherwise the interpreter's own flush would change the code
    flush(sys.stderr)
    state.unwritten = state.unwritten or flush_error
    return code if state.unwritten is None else report_unwritten(state.unwritten, code, state)


def run_reported(run: Callable[[], Any], state: CommandSession) -> int:
    """Run a command, report its error if there is one, and return the exit code.

    Args:
        run: The command, without arguments.
        state: The session of the command.
    """
    try:
        code = run()
        return code if isinstance(code, int) else 0
    except BrokenPipe as broken:
        error: Exception = broken.error
    except Exception as caught:  # noqa: BLE001 -- here every error becomes an exit code
        error = caught
    if isinstance(error.__cause__, KeyboardInterrupt):  # click turns an interrupt into its Abort
        say("Interrupted. Acknowledged changes are kept. The same command continues from there.")
        return 130
    if isinstance(error, OSError) and is_raised_by_echo(error):
        state.unwritten = error
        return 0
    return report_error(error, state)


def is_raised_by_echo(error: OSError) -> bool:
    """Return True if click could not print a help, a version or a question.

    Args:
        error: An error with its traceback.
    """
    return any(frame.f_code is click.echo.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))


def report_error(error: Exception, state: CommandSession) -> int:
    """Report an error on stderr and return its exit code.

    Args:
        error: The error of the command.
        state: The session of the command. With `debug`, a bug is raised instead.
    """
    if state.debug and not isinstance(error, FedmemError | click.ClickException):
        raise error
    typed_error = typed_error_for(error)
    if typed_error is None:
        typed_error = FedmemError(
            f"Unexpected {type(error).__name__}: a bug in fedmem. `fedmem --debug …` shows the traceback."
        )
    write_error(typed_error, state)
    return typed_error.exit_code


def report_unwritten(error: OSError, code: int, state: CommandSession) -> int:
    """Report that stdout did not receive the data, and return the exit code.

    Args:
        error: The error of the write.
        code: Exit code of the command itself.
        state: The session of the command.
    """
    if isinstance(error, BrokenPipeError) and not (state.changes or state.again):
        return code
    reason = os.strerror(error.errno or 0)
    if state.changes or state.again or code:
        say(f"The output could not be written ({reason}). {state.again or 'The changes of the command are kept.'}")
        return code
    say(f"The output could not be written ({reason}). Repeat the command with an output that can be written.")
    return StorageError.exit_code


def typed_error_for(error: Exception) -> FedmemError | None:
    """Return the typed error for any error. Return None if the error is a bug.

    Args:
        error: Any error.
    """
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
