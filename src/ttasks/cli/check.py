"""Checking a ledger, and making its rows again."""

from __future__ import annotations

from pathlib import Path

from ttasks.cli.text import console
from ttasks.display import count, printable
from ttasks.errors import DamagedLedgerError, words
from ttasks.log import checked, verify
from ttasks.log.event_log import EventLog
from ttasks.log.reading import Readers


def verify_ledger(path: Path, head: str | None) -> int:
    """Print what `verify` finds, and note it beside the ledger; return the exit code: 0 when the ledger is clean."""
    out = console()
    try:
        report = verify.verify(Readers.open(path), head=head)
    except DamagedLedgerError as error:
        why = words(error.__cause__ or error)
        raise DamagedLedgerError(f"{path} is too damaged to be checked ({why}): restore it from a copy") from error
    checked.write(path, checked.checked_now(report))  # where it can't be written, there is just no note
    for problem in report.problems:
        out.print(printable(str(problem)), style="red")
    if report.is_clean:
        out.print(f"clean: {count(report.events, 'event')}, head {report.head}")
        return 0
    first = report.first
    assert first is not None
    more = " or more" if len(report.problems) == verify.PROBLEMS_MAX else ""
    where = f"event {first.position}" if first.position is not None else "no single event"
    out.print(f"NOT clean: {count(len(report.problems), 'problem')}{more}; the first is at {where} ({first.promise})")
    return 1


def rebuild_ledger(path: Path) -> None:
    """Make the rows again and say how many events were folded."""
    Readers.open(path).close()  # refuses where there is nothing to rebuild, before anything is made
    log = EventLog.open(path)
    try:
        folded = verify.rebuild(log)
    finally:
        log.close()
    console().print(f"rebuilt from {count(folded, 'event')}")
