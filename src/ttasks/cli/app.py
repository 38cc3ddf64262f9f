"""The group of commands, and what they share: where the ledger is, and how errors end."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Final, ParamSpec

import click

from ttasks.errors import NotALedgerError, NotFoundError, RedactionError, TtasksError, WorkflowError
from ttasks.version import __version__

Parameters = ParamSpec("Parameters")
DEFAULT_LEDGER: Final = Path(".ttasks") / "ledger.db"
EXIT_NOT_OK: Final = 1
EXIT_BAD_INPUT: Final = 2
EXIT_CTRL_C: Final = 130


def ledger_path(given: Path | None) -> Path:
    """Return the ledger to use: the one given, else ``$TTASKS_LEDGER``, else ``.ttasks/ledger.db`` here."""
    if given is not None:
        return given
    return Path(os.environ["TTASKS_LEDGER"]) if os.environ.get("TTASKS_LEDGER") else DEFAULT_LEDGER


ledger_option = click.option(
    "--ledger",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PATH",
    help="The ledger. Default: $TTASKS_LEDGER, else .ttasks/ledger.db in the working directory.",
)


def says_errors(function: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Let a command end with a sentence and an exit code instead of a traceback."""

    @wraps(function)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except BrokenPipeError:  # whoever read us has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(EXIT_NOT_OK)
        except TtasksError as error:
            from ttasks.cli.text import console, printable

            out = console(stderr=True)
            lines = str(error).splitlines() if isinstance(error, WorkflowError) else [f"ttasks: {error}"]
            for line in lines:
                out.print(printable(_redacted(line)))
            is_bad_input = isinstance(error, WorkflowError | NotALedgerError | NotFoundError | RedactionError)
            sys.exit(EXIT_BAD_INPUT if is_bad_input else EXIT_NOT_OK)

    return wrapped


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


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-j", "--jobs", type=click.IntRange(min=1), metavar="N", help="How many tasks run at the same time.")
@ledger_option
@says_errors
def run(file: Path, jobs: int | None, ledger: Path | None) -> None:
    """Run the workflow FILE; exit with 0 when it is ok, 1 when not, 2 when the file can't be used."""
    from ttasks.cli.run import run_file

    sys.exit(run_file(file, ledger_path(ledger), jobs))


@command.command()
@click.option("--tasks", is_flag=True, help="List tasks instead of graphs.")
@click.option("-n", "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many.")
@ledger_option
@says_errors
def ls(tasks: bool, limit: int, ledger: Path | None) -> None:
    """List the latest graphs, newest first."""
    from ttasks.cli import look

    look.list_latest(ledger_path(ledger), tasks=tasks, limit=limit)


@command.command()
@click.argument("id", required=False)
@click.option("--output", is_flag=True, help="Print all that a task printed, not only the last lines.")
@ledger_option
@says_errors
def show(id: str | None, output: bool, ledger: Path | None) -> None:
    """Show a graph or a task: ID is its id, or the beginning or end of it. Default: the latest graph."""
    from ttasks.cli import look

    look.show(ledger_path(ledger), id, whole_output=output)


@command.command()
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


@command.command()
@click.argument("id")
@ledger_option
@says_errors
def cancel(id: str, ledger: Path | None) -> None:
    """Cancel a task, or the run of a graph, whoever runs it: ID is its id, or the beginning or end of it."""
    from ttasks.cli.act import cancel_by_id

    cancel_by_id(ledger_path(ledger), id)


def _hash(_: click.Context, __: click.Parameter, given: str | None) -> str | None:
    if given is not None and not re.fullmatch("[0-9a-fA-F]{64}", given):
        raise click.BadParameter(f"{given!r} is no hash: verify prints one as 64 hexadecimal digits")
    return given


@command.command()
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


@command.command()
@ledger_option
@says_errors
def rebuild(ledger: Path | None) -> None:
    """Make all tables again from the events."""
    from ttasks.cli import check

    check.rebuild_ledger(ledger_path(ledger))
