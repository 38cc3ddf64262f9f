"""A cancel, or a signal, that comes when all the work is done: row, exit code, summary and pages say the same."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from commands import Command
from pages import get_all
from ttasks.cli.app import command as cli

LATE = '''
import os, signal, subprocess, sys, threading
from ttasks.cli import main
from ttasks.events.facts import AttemptEnd, GraphRunFinished
from ttasks.runtime.graph_run import GraphRun
from ttasks.runtime.journal import LedgerJournal

how, moment, *sys.argv[1:] = sys.argv[1:]
record, done = LedgerJournal.record, threading.Event()

def noting(action):
    def act(self, *arguments):
        action(self, *arguments)
        done.set()
    return act

GraphRun._withdraw, GraphRun._stop = noting(GraphRun._withdraw), noting(GraphRun._stop)

def stop(journal):
    """Ask for the end of the run, and go on once its runner has obeyed, or can't hear of it any more."""
    if how == "cancel":
        (graph,) = journal._store.graphs
        subprocess.run([sys.executable, "-c", "from ttasks.cli import main; main()", "cancel", graph], check=True)
    else:
        os.kill(os.getpid(), getattr(signal, how))
    if moment == "last end" and how != "SIGTERM":
        assert done.wait(20)

def late(journal, entries):
    facts = [fact for entry in entries for fact in entry.facts]
    if moment == "end of the run" and any(isinstance(fact, GraphRunFinished) for fact in facts):
        stop(journal)
    recorded = record(journal, entries)
    of_last = [fact for entry in entries if getattr(entry.handle, "name", "") == "last" for fact in entry.facts]
    if moment == "last end" and any(isinstance(fact, AttemptEnd) for fact in of_last):
        stop(journal)
    return recorded

LedgerJournal.record = late
main()
'''


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    ttasks = Command(tmp_path)
    yield ttasks
    ttasks.clean_up()


def look(ledger: Path, verb: str) -> str:
    return CliRunner().invoke(cli, [verb, "--ledger", str(ledger)]).output


def run_late(command: Command, how: str, moment: str, script: str) -> tuple[int, str]:
    command.write("late.py", LATE)
    command.write("w.yaml", f"tasks:\n  first: {{bash: 'true'}}\n  last: {{bash: '{script}', after: [first]}}\n")
    return command.start_process([sys.executable, "late.py", how, moment, "run", "w.yaml"]).end()


SUCCEEDS = ("true", "succeeded", "OK", 0)
FAILS = ("exit 3", "failed", "NOT OK", 1)


@pytest.mark.parametrize(
    ("how", "moment", "script", "status", "verdict", "code"),
    [
        *(
            (how, moment, *SUCCEEDS)
            for how in ("SIGINT", "SIGTERM", "cancel")
            for moment in ("last end", "end of the run")
        ),
        ("SIGINT", "last end", *FAILS),
    ],
)
def test_a_stop_that_comes_when_all_is_done_changes_nothing(
    command: Command, how: str, moment: str, script: str, status: str, verdict: str, code: int
) -> None:
    exit_code, printed = run_late(command, how, moment, script)
    assert command.sql("SELECT status FROM runs") == [(status,)]
    assert exit_code == code
    assert re.search(rf"^{verdict}: ", printed, re.MULTILINE), printed
    assert f" {status} " in look(command.ledger, "ls").splitlines()[1]
    assert f"status    {status} after" in look(command.ledger, "show")
    graph = command.graph_id()
    home, page = get_all(command.ledger, "/-/ttasks/ledger", f"graph/{graph}")
    assert status in home.seen
    assert page.seen.startswith("w ") or f" {status} after " in page.seen
    assert "Cancelled by" not in page.seen
    assert ("ttasks retry" in printed) == (status == "failed")
