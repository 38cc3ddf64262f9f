"""The same as check.yaml, in Python: checks this repository. Exits with 0 when everything is in order."""

import os
import sys
from pathlib import Path

from ttasks import SQLiteStore, Task, TaskEvent, TaskExecutor, TaskGraph

ROOT = str(Path(__file__).resolve().parent.parent)
BUILD = """
rm -rf build/check
python -m build --wheel --outdir build/check .
python -m zipfile --list build/check/ttasks-*.whl | grep --quiet migrations/0001_ledger.sql
"""


def bash(title: str, script: str) -> Task:
    return Task.bash(script, title=title, cwd=ROOT, timeout=300)


def tell(event: TaskEvent) -> None:
    print(event.task.title, event.type, event.output_chunk or "", end="" if event.output_chunk else "\n")


lint = bash("lint", "python -m ruff check src tests examples")
types = bash("types", "python -m mypy")
tests = bash("tests", "python -m pytest -q -p no:cacheprovider tests/unit/test_workflow_file.py")
build = bash("build", BUILD)
report = bash("report", "python examples/report.py")

graph = TaskGraph(title="Check this repository")
for task in (lint, types, tests):
    graph.add(task)
graph.add(build, after=[lint, types, tests])
graph.add(report, after=[build], finally_=True, required=False)

with SQLiteStore(os.environ.get("TTASKS_LEDGER") or ".ttasks/ledger.db") as store, TaskExecutor(store) as executor:
    executor.events.subscribe(tell)
    graph.run(executor)
sys.exit(0 if graph.ok else 1)
