"""The examples do what they say: the failing ones fail as documented, the main one is a graph that can run."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import ttasks
from doubles.scripted import scripted_cli
from ttasks.cli.run import graph_of
from ttasks.cli.workflow import load_workflow

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TTASKS = [sys.executable, "-c", "from ttasks.cli import main; main()"]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Give a folder with a short name: what a failing example leaves behind would be in it."""
    with tempfile.TemporaryDirectory(prefix="ttasks-") as folder:
        yield Path(folder)


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("TTASKS_")}
    package = str(Path(ttasks.__file__).resolve().parents[1])
    (folder / "tmp").mkdir()
    return subprocess.run(
        command,
        cwd=folder,
        env={**mine, "PYTHONPATH": package, "TMPDIR": str(folder / "tmp")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def documented() -> dict[str, str]:
    """Return how failing.yaml says in its head that its tasks end."""
    head = (EXAMPLES / "failing.yaml").read_text("utf-8").partition("\ntitle:")[0]
    return dict(re.findall(r"^#   (\w+) +(\w+)", head, flags=re.MULTILINE))


def statuses(folder: Path) -> dict[str, str]:
    with contextlib.closing(sqlite3.connect(folder / ".ttasks" / "ledger.db")) as ledger:
        return dict(ledger.execute("SELECT name, status FROM tasks").fetchall())


FAILING = [[*TTASKS, "run", str(EXAMPLES / "failing.yaml")], [sys.executable, str(EXAMPLES / "failing.py")]]


@pytest.mark.parametrize("command", FAILING, ids=["yaml", "python"])
def test_the_failing_example_fails_as_documented_and_cleans_up(command: list[str], scratch: Path) -> None:
    done = run(scratch, *command)
    assert (done.returncode, done.stderr) == (1, "")
    assert "NOT OK" in done.stdout
    assert statuses(scratch) == documented()
    assert list((scratch / "tmp").iterdir()) == []


@pytest.mark.parametrize("command", FAILING, ids=["yaml", "python"])
def test_the_failing_example_tries_again_as_often_as_it_says(command: list[str], scratch: Path) -> None:
    run(scratch, *command)
    query = "SELECT tasks.name, count(*) FROM attempts JOIN tasks ON tasks.id = task_id GROUP BY 1 ORDER BY 1"
    with contextlib.closing(sqlite3.connect(scratch / ".ttasks" / "ledger.db")) as ledger:
        attempts = dict(ledger.execute(query).fetchall())
    assert attempts == {"cleanup": 1, "deploy": 2, "flaky": 3, "notify": 1, "prepare": 1}


def test_the_failing_examples_are_the_same_graph_in_yaml_and_in_python(scratch: Path) -> None:
    sys.path.insert(0, str(EXAMPLES))
    try:
        from failing import failing_graph
    finally:
        sys.path.remove(str(EXAMPLES))
    assert shape(failing_graph(scratch)) == shape(graph_of(load_workflow(EXAMPLES / "failing.yaml")))


def test_the_checking_examples_are_the_same_graph_in_yaml_and_in_python(scratch: Path) -> None:
    sys.path.insert(0, str(EXAMPLES))
    try:
        from check import check_graph
    finally:
        sys.path.remove(str(EXAMPLES))
    assert shape(check_graph(scratch / "ledger.db")) == shape(graph_of(load_workflow(EXAMPLES / "check.yaml")))


def shape(graph: ttasks.TaskGraph) -> dict[str, tuple[object, ...]]:
    """Return for each task, by name, what it waits for, what it is, and how often it is tried."""
    return {
        task.name: (
            [parent.name for parent in parents],
            graph.is_finally(task),
            graph.is_optional(task),
            graph._policies.get(task.id),
            task.timeout,
        )
        for task, parents in graph.items()
    }


def test_the_main_example_checks_lint_types_and_tests_side_by_side_then_builds_and_reports_at_last() -> None:
    workflow = load_workflow(EXAMPLES / "check.yaml")
    graph = graph_of(workflow)
    graph._check()
    assert [task.name for task in graph.roots()] == ["lint", "types", "tests"]
    assert [task.name for task in graph.finally_tasks] == ["report"]
    assert workflow.tasks["build"].after == ("lint", "types", "tests")
    for task in workflow.tasks.values():
        assert task.cwd is not None
        assert Path(task.cwd).resolve() == EXAMPLES.parent


REPORTED = """
title: a run with a report
tasks:
  work: {{bash: "echo first; echo last"}}
  skip: {{bash: exit 1, after: [work]}}
  report: {{bash: '"$PYTHON" "$REPORT"', after: [work, skip], finally: true, env: {{PYTHON: "{}", REPORT: "{}"}}}}
"""


def test_the_report_says_what_each_task_of_its_run_came_to(scratch: Path) -> None:
    (scratch / "run.yaml").write_text(REPORTED.format(sys.executable, EXAMPLES / "report.py"), "utf-8")
    done = run(scratch, *TTASKS, "run", "run.yaml")
    assert "report succeeded" in done.stdout, done.stdout
    lines = (scratch / ".ttasks" / "report.txt").read_text("utf-8").splitlines()
    assert lines[0].startswith("a run with a report: run 1, started ")
    assert [line.split()[:2] for line in lines[2:5]] == [
        ["work", "succeeded"],
        ["skip", "failed"],
        ["report", "running"],
    ]
    assert lines[2].endswith("  last")


def test_the_report_refuses_a_ledger_that_is_not_the_one_of_its_run(scratch: Path) -> None:
    (scratch / "run.yaml").write_text(REPORTED.format(sys.executable, EXAMPLES / "report.py"), "utf-8")
    done = run(scratch, *TTASKS, "run", "run.yaml", "--ledger", "elsewhere.db")
    assert done.returncode == 1
    assert "there is no ledger at " in done.stdout


def test_the_reviewing_example_lets_an_agent_read_what_failed_and_nothing_else(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (EXAMPLES / "review.yaml").read_text("utf-8")
    broken = re.sub(r"bash: python .*", "bash: echo E501 >&2; exit 1", text)
    (scratch / "examples").mkdir()
    (scratch / "examples" / "review.yaml").write_text(broken, "utf-8")
    asked = ["ttasks show", "ttasks show 01a2 --output", "ttasks show; git push", "ttasks rebuild"]
    steps = [{"tool": "bash", "arguments": {"command": command}, "output": ""} for command in asked]
    view = {"tool": "view", "arguments": {"path": str(scratch / "examples" / "review.yaml")}, "output": ""}
    edit = {"tool": "edit", "arguments": {"path": "examples/review.yaml", "old_str": "", "new_str": ""}, "output": ""}
    cli = scripted_cli(scratch / "stand-in", [*steps, view, edit, {"say": "Line 3 is too long: cut it."}])
    monkeypatch.setenv("COPILOT_CLI_PATH", str(cli))
    monkeypatch.setenv("HOME", str(scratch))

    done = run(scratch, *TTASKS, "run", "examples/review.yaml")

    assert done.returncode == 1
    assert "advise | Line 3 is too long: cut it." in done.stdout
    assert statuses(scratch) == {"lint": "failed", "types": "failed", "tests": "failed", "advise": "succeeded"}
    with contextlib.closing(sqlite3.connect(scratch / ".ttasks" / "ledger.db")) as ledger:
        decisions = ledger.execute("SELECT decision, decided_by FROM permissions ORDER BY position").fetchall()
    assert decisions == [
        ("approved", "shell(ttasks show)"),
        ("approved", "shell(ttasks show *)"),
        ("denied", "no rule"),
        ("denied", "no rule"),
        ("approved", "read"),
        ("denied", "no rule"),
    ]


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda example: example.name)
def test_an_example_imports_nothing_but_the_standard_library_and_ttasks(example: Path) -> None:
    tree = ast.parse(example.read_text("utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {name.partition(".")[0] for name in imported}
    assert roots - sys.stdlib_module_names - {"ttasks"} == set()


def test_the_crash_example_crashes_the_first_time_and_goes_on_the_second(scratch: Path) -> None:
    example = [sys.executable, str(EXAMPLES / "crash.py")]
    first = run(scratch, *example)
    assert first.returncode == -signal.SIGKILL
    assert first.stdout.splitlines() == ["extract: done in attempt 1", "transform: here the lights go out"]
    (scratch / "tmp").rmdir()
    second = run(scratch, *example)
    assert (second.returncode, second.stderr) == (0, "")
    assert second.stdout.splitlines()[1:] == [
        "transform: done in attempt 2",
        "clean: done in attempt 1",
        "extract: succeeded after 1 attempts",
        "transform: succeeded after 2 attempts",
        "clean: succeeded after 1 attempts",
    ]
