"""The group of commands, and what they share: where the ledger is, and how errors end."""

from __future__ import annotations

import errno
import os
import re
import shlex
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Final, ParamSpec

import click

from ttasks.cli.streams import needs_no_reader
from ttasks.display import short
from ttasks.errors import NotALedgerError, NotFoundError, NotResumableError, RedactionError, TtasksError, WorkflowError
from ttasks.state.next_steps import Step
from ttasks.version import __version__

Parameters = ParamSpec("Parameters")
DEFAULT_LEDGER: Final = Path(".ttasks") / "ledger.db"
EXIT_NOT_OK: Final = 1
_SHORT_OF: Final = {
    errno.EMFILE: "too many open files",
    errno.ENFILE: "too many open files",
    errno.ENOMEM: "too few bytes of memory",
    errno.EAGAIN: "too many processes",
}
EXIT_BAD_INPUT: Final = 2
EXIT_CTRL_C: Final = 130
ONLY_PRINT: Final = ("ls", "show", "events")
"""The commands that end where nobody reads what they print. Of the others, what they do counts, and their exit code."""


def ledger_path(given: Path | None) -> Path:
    """Return the ledger to use: the one given, else ``$TTASKS_LEDGER``, else ``.ttasks/ledger.db`` here."""
    if given is not None:
        return given
    return Path(os.environ["TTASKS_LEDGER"]) if os.environ.get("TTASKS_LEDGER") else DEFAULT_LEDGER


class Hint:
    """Makes a command line that a person can copy, for the ledger that this one used."""

    def __init__(self, ledger: Path | None) -> None:
        self._ledger = f" --ledger {shlex.quote(str(ledger))}" if ledger is not None else ""

    def __call__(self, words: str) -> str:
        """Return the command line of these words."""
        return f"ttasks {words}{self._ledger}"

    def step(self, step: Step) -> str:
        """Return the command line of a step, with what may be said instead."""
        others = f"  (or {', or '.join(step.alternatives)})" if step.alternatives else ""
        return self(step.words(short(step.id))) + others


ledger_option = click.option(
    "--ledger",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PATH",
    help="The ledger. Default: $TTASKS_LEDGER, else .ttasks/ledger.db in the working directory.",
)


def says_errors(function: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Let a command end with a sentence and an exit code instead of a traceback.

    Unless it only prints, it goes on without a stdout to print to.
    """

    @wraps(function)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        if function.__name__ not in ONLY_PRINT:
            needs_no_reader()
        try:
            function(*args, **kwargs)
        except TtasksError as error:
            from ttasks.cli.text import console
            from ttasks.display import printable

            out = console(stderr=True)
            lines = str(error).splitlines() if isinstance(error, WorkflowError) else [f"ttasks: {error}"]
            for line in lines:
                out.print(printable(_redacted(line)))
            is_bad_input = isinstance(
                error, WorkflowError | NotALedgerError | NotFoundError | NotResumableError | RedactionError
            )
            sys.exit(EXIT_BAD_INPUT if is_bad_input else EXIT_NOT_OK)
        except (MemoryError, OSError, RuntimeError) as error:
            short_of = _short_of(error)
            if short_of is None:
                raise
            # Not by way of a Console: what is needed for that may be just what is missing.
            sys.stderr.write(f"ttasks: {short_of}. What was recorded is in the ledger; try again when there is more\n")
            sys.exit(EXIT_NOT_OK)

    return wrapped


def _short_of(error: BaseException) -> str | None:
    """Say what the machine has no more of; None where the error is about something else."""
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    if isinstance(error, OSError) and error.errno in _SHORT_OF:
        return f"there are {_SHORT_OF[error.errno]} ({error.strerror})"
    return "there are no more threads to be had" if "start new thread" in str(error) else None


def _redacted(text: str) -> str:
    from ttasks.log.redaction import read_redaction, redacted

    try:
        return redacted(text, read_redaction((), os.environ))
    except RedactionError:  # it is what there is to say
        return text


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ttasks")
def command() -> None:
    """Run tasks and graphs of tasks, and look at what ran: every event is in one SQLite file, the ledger."""


env_option = click.option(
    "--env",
    "variables",
    multiple=True,
    metavar="NAME",
    help="Give a secret variable again, which the ledger withholds, from the environment. May be repeated.",
)
force_option = click.option(
    "--force-handlers", is_flag=True, help="Go on though a handler is another than the recorded one."
)


@command.command(short_help="Run a workflow file.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-j", "--jobs", type=click.IntRange(min=1), metavar="N", help="How many tasks run at the same time.")
@click.option("--resume", "goes_on", is_flag=True, help="Go on with the latest run of FILE, which was interrupted.")
@env_option
@ledger_option
@says_errors
def run(file: Path, jobs: int | None, goes_on: bool, variables: tuple[str, ...], ledger: Path | None) -> None:
    """Run the workflow FILE; exit with 0 when it is ok, 1 when not, 2 when the file can't be used."""
    from ttasks.cli import resume as resuming
    from ttasks.cli.run import run_file

    path, hint = ledger_path(ledger), Hint(ledger)
    if goes_on:
        if jobs is not None:
            raise click.UsageError("--resume goes on with as many workers as the run had: leave out --jobs")
        sys.exit(resuming.resume_file(path, file, hint, variables))
    if variables:
        raise click.UsageError("--env gives again what the ledger withholds: it needs --resume")
    sys.exit(run_file(file, path, jobs, hint))


@command.command(short_help="Go on with what was interrupted.")
@click.argument("id", required=False)
@click.option("--list", "only_list", is_flag=True, help="Only say what was interrupted, and what is owed.")
@click.option("--finally-only", is_flag=True, help="Run only the finally tasks that are owed; the run is cancelled.")
@force_option
@env_option
@ledger_option
@says_errors
def resume(
    id: str | None,
    only_list: bool,
    finally_only: bool,
    force_handlers: bool,
    variables: tuple[str, ...],
    ledger: Path | None,
) -> None:
    """Go on with what was interrupted: the graph or task ID, or everything; what had ended is not run again."""
    from ttasks.cli import resume as resuming

    path, hint = ledger_path(ledger), Hint(ledger)
    if only_list:
        resuming.list_interrupted(path, id, hint)
        return
    options = resuming.Options(variables, finally_only=finally_only, force_handlers=force_handlers)
    sys.exit(resuming.resume_interrupted(path, id, hint, options))


@command.command(short_help="Decide what an interrupted task counts as.")
@click.argument("id")
@click.option("--succeeded", is_flag=True, help="It did its work: what depends on it may run.")
@click.option("--failed", is_flag=True, help="It did not.")
@click.option("--rerun", is_flag=True, help="It may be run again.")
@click.option("--note", metavar="TEXT", help="Why, for whoever reads this later.")
@ledger_option
@says_errors
def resolve(id: str, succeeded: bool, failed: bool, rerun: bool, note: str | None, ledger: Path | None) -> None:
    """Decide what the interrupted task ID counts as; who did, and why, is recorded."""
    from ttasks.cli.act import resolve_by_id

    given = {"succeeded": succeeded, "failed": failed, "rerun": rerun}
    answers = [name for name, is_given in given.items() if is_given]
    if len(answers) != 1:
        several = ", not several of them" if answers else ""
        raise click.UsageError(f"say what it counts as: --succeeded, --failed or --rerun{several}")
    resolve_by_id(ledger_path(ledger), id, answers[0], note, Hint(ledger))


@command.command(short_help="Carry on with a graph that failed or was cancelled.")
@click.argument("id", required=False)
@click.option("--task", "tasks", multiple=True, metavar="NAME", help="Do this task again, and what depends on it.")
@click.option("-j", "--jobs", type=click.IntRange(min=1), metavar="N", help="How many tasks run at the same time.")
@env_option
@ledger_option
@says_errors
def retry(
    id: str | None, tasks: tuple[str, ...], jobs: int | None, variables: tuple[str, ...], ledger: Path | None
) -> None:
    """Carry on with the graph ID, which ended, as a new graph: what succeeded is done. Default: the latest graph."""
    from ttasks.cli import resume as resuming

    sys.exit(resuming.retry_graph(ledger_path(ledger), id, Hint(ledger), tasks, variables, jobs))


@command.command(short_help="List the latest graphs or tasks.")
@click.option("--tasks", is_flag=True, help="List tasks instead of graphs.")
@click.option("-n", "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many.")
@ledger_option
@says_errors
def ls(tasks: bool, limit: int, ledger: Path | None) -> None:
    """List the latest graphs, newest first."""
    from ttasks.cli import look

    look.list_latest(ledger_path(ledger), tasks=tasks, limit=limit)


@command.command(short_help="Show a graph or a task.")
@click.argument("id", required=False)
@click.option("--output", is_flag=True, help="Print only what a task printed, all of it; of an agent, all it did.")
@ledger_option
@says_errors
def show(id: str | None, output: bool, ledger: Path | None) -> None:
    """Show a graph or a task: ID is its id, or the beginning or end of it. Default: the latest graph."""
    from ttasks.cli import look

    look.show(ledger_path(ledger), id, whole_output=output)


@command.command(short_help="Print events.")
@click.argument("id", required=False)
@click.option("--after", type=click.IntRange(min=0), default=0, metavar="POSITION", help="Only events after this one.")
@click.option("--type", "type_", metavar="TYPE", help="Only events of this type, such as TaskStarted.")
@click.option("-n", "--limit", type=click.IntRange(min=1), help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@ledger_option
@says_errors
def events(
    id: str | None, after: int, type_: str | None, limit: int | None, as_json: bool, ledger: Path | None
) -> None:
    """Print events, oldest first: all, or those of the graph or task ID."""
    from ttasks.cli import look

    look.print_events(ledger_path(ledger), id, after=after, type_=type_, limit=limit, as_json=as_json)


@command.command(short_help="Cancel a task or a run.")
@click.argument("id")
@ledger_option
@says_errors
def cancel(id: str, ledger: Path | None) -> None:
    """Cancel a task, or the run of a graph, whoever runs it: ID is its id, or the beginning or end of it."""
    from ttasks.cli.act import cancel_by_id

    cancel_by_id(ledger_path(ledger), id, Hint(ledger))


def _hash(_: click.Context, __: click.Parameter, given: str | None) -> str | None:
    if given is not None and not re.fullmatch("[0-9a-fA-F]{64}", given):
        raise click.BadParameter(f"{given!r} is no hash: verify prints one as 64 hexadecimal digits")
    return given


@command.command(short_help="Check every event and every row.")
@click.option(
    "--head",
    metavar="HASH",
    callback=_hash,
    help="The hash of an event that has to be there: finds a tail that was cut.",
)
@ledger_option
@says_errors
def verify(head: str | None, ledger: Path | None) -> None:
    """Check every event and every row; exit with 1 and name the first bad event when something is wrong."""
    from ttasks.cli import check

    sys.exit(check.verify_ledger(ledger_path(ledger), head))


@command.command(short_help="Make all tables again from the events.")
@ledger_option
@says_errors
def rebuild(ledger: Path | None) -> None:
    """Make all tables again from the events."""
    from ttasks.cli import check

    check.rebuild_ledger(ledger_path(ledger))


@command.command(short_help="Show ledgers in a browser.")
@click.argument("more", nargs=-1, type=click.Path(path_type=Path, dir_okay=False), metavar="[PATH]...")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8001,
    show_default=True,
    metavar="N",
    help="Where to listen; 0: the system chooses.",
)
@click.option("--open", "opens", is_flag=True, help="Open it in a browser.")
@ledger_option
@says_errors
def browse(more: tuple[Path, ...], port: int, opens: bool, ledger: Path | None) -> None:
    """Show the ledger, or those at PATH, in a browser until Ctrl-C: on this machine only, and only to read."""
    from ttasks.cli import browse as browsing

    given = [ledger] if ledger is not None else []
    sys.exit(browsing.browse([*given, *more] or [ledger_path(None)], port, opens=opens))


@command.command(short_help="Say what can run here.")
@click.argument("parts", nargs=-1, type=click.Choice(("bash", "pwsh", "copilot")), metavar="[bash|pwsh|copilot]...")
@says_errors
def doctor(parts: tuple[str, ...]) -> None:
    """Say what can run here, without asking a model anything; exit with 1 when something that is named can't."""
    from ttasks.cli import doctor as examining

    sys.exit(examining.doctor(parts))
