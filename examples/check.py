"""What check.yaml does, in Python: `python examples/check.py` checks this repository.

Run it with the dev tools installed; the ledger is $TTASKS_LEDGER, else .ttasks/ledger.db in the working directory.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from ttasks import RetryPolicy, SQLiteStore, Task, TaskEvent, TaskEventType, TaskExecutor, TaskGraph

ROOT = Path(__file__).resolve().parent.parent
PYTHON = shlex.quote(sys.executable)
LINT = f"""
set -e
{PYTHON} -m ruff check .
{PYTHON} -m ruff format --check .
"""
BUILD = f"""
set -e
rm -rf build/check
{PYTHON} -m build --outdir build/check .
{PYTHON} examples/check_wheel.py build/check/*.whl
"""


def check_graph(ledger: Path) -> TaskGraph:
    """Return the graph; the report is told which ledger it runs into."""

    def script(name: str, payload: str, timeout: float, **env: str) -> Task:
        return Task.bash(payload, title=name, cwd=str(ROOT), timeout=timeout, env=env)

    graph = TaskGraph(title="check ttasks")
    checks = [
        graph.add(script("lint", LINT, 120)),
        graph.add(script("types", f"{PYTHON} -m mypy", 300)),
        graph.add(script("tests", f"{PYTHON} -m pytest -q -n 2 tests/unit", 600)),
    ]
    build = graph.add(script("build", BUILD, 300), after=checks, retry_policy=RetryPolicy(max_attempts=2, backoff=2))
    graph.add(
        script("report", f"{PYTHON} examples/report.py", 60, TTASKS_LEDGER=str(ledger)),
        after=[*checks, build],
        finally_=True,
        required=False,
    )
    return graph


def say(event: TaskEvent) -> None:
    """Print each line as it comes, and each start and end."""
    if event.type is TaskEventType.OUTPUT:
        print(f"{event.task.title:7} | {(event.output_chunk or '').rstrip()}")
    else:
        print(f"{event.task.title:7} {event.type}")


def main() -> int:
    """Run the graph; return the exit code."""
    ledger = Path(os.environ.get("TTASKS_LEDGER") or ".ttasks/ledger.db").absolute()
    with SQLiteStore(ledger) as store, TaskExecutor(store) as executor:
        executor.events.subscribe(say)
        graph = check_graph(ledger).run(executor, max_workers=3)
    print("OK" if graph.ok else f"NOT OK: {', '.join(task.title for task in graph.required_failed)} failed")
    return 0 if graph.ok else 1


if __name__ == "__main__":
    sys.exit(main())
