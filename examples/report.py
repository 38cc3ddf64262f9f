"""Write a report on the run that this task belongs to: what each task came to, read from the ledger with plain SQL.

It needs nothing of ttasks: the ledger is a SQLite file, and TTASKS_ATTEMPT (``<ledger id>:<position>``), which every
script is given, says which attempt this is.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

THIS_RUN = "SELECT graph_id, run FROM attempts WHERE position = ?"
ABOUT = """
SELECT graphs.title, runs.started_at, runners.user, runners.host, runners.git_commit, runners.git_dirty
FROM runs JOIN graphs ON graphs.id = runs.graph_id JOIN runners ON runners.position = runs.runner
WHERE runs.graph_id = ? AND runs.run = ?
"""
TASKS = """
SELECT tasks.id, tasks.name, tasks.status, tasks.attempts, tasks.result_duration, graph_tasks.is_required
FROM graph_tasks JOIN tasks ON tasks.id = graph_tasks.task_id
WHERE graph_tasks.graph_id = ? ORDER BY graph_tasks.place
"""
LAST_CHUNK = """
SELECT text FROM task_output
WHERE task_id = ? AND attempt = ? AND trim(text, char(10, 32)) <> '' ORDER BY position DESC, chunk DESC LIMIT 1
"""


def report(ledger: sqlite3.Connection, graph: str, run: int) -> str:
    """Return the report on one run."""
    title, started_at, user, host, commit, is_dirty = ledger.execute(ABOUT, (graph, run)).fetchone()
    tree = f", commit {commit[:12]}{' with changes' if is_dirty else ''}" if commit else ""
    lines = [f"{title}: run {run}, started {started_at} by {user}@{host}{tree}", ""]
    for task, name, status, attempts, duration, is_required in ledger.execute(TASKS, (graph,)):
        took = f"{duration:8.2f} s" if duration is not None else " " * 10
        said = ledger.execute(LAST_CHUNK, (task, attempts)).fetchone()
        last = said[0].strip().splitlines()[-1] if said else ""
        optional = "" if is_required else " (optional)"
        lines.append(f"{name + optional:20} {status:10} {attempts} x {took}  {last}".rstrip())
    events, head = ledger.execute("SELECT position, lower(hex(hash)) FROM events ORDER BY position DESC").fetchone()
    return "\n".join([*lines, "", f"{events} events so far; the last one's hash is {head}", ""])


def main() -> None:
    """Find the ledger and this attempt in it, write the report beside the ledger, and print it."""
    path = Path(os.environ.get("TTASKS_LEDGER") or ".ttasks/ledger.db").absolute()
    ledger_id, _, position = os.environ.get("TTASKS_ATTEMPT", "").partition(":")
    if not path.exists():
        sys.exit(f"there is no ledger at {path}: set TTASKS_LEDGER to the absolute path of the one in use")
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as ledger:
        (created,) = ledger.execute("SELECT data FROM events WHERE position = 1").fetchone()
        if json.loads(created)["ledger"] != ledger_id:
            sys.exit(f"{path} is not the ledger of this run: set TTASKS_LEDGER to the absolute path of that one")
        graph, run = ledger.execute(THIS_RUN, (int(position),)).fetchone()
        text = report(ledger, graph, run)
    target = path.with_name("report.txt")
    target.write_text(text, "utf-8")
    print(text + f"written to {target}")


if __name__ == "__main__":
    main()
