"""What people read of a run while it goes on and when it has ended: every status and every summary is true."""

from __future__ import annotations

import contextlib
import re
import signal
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from commands import Command
from pages import get_all
from ttasks import RetryPolicy, SQLiteStore, Task, TaskContext, TaskExecutor, TaskGraph, TaskType, clock
from ttasks.cli.app import command as cli
from ttasks.display import duration


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    ttasks = Command(tmp_path)
    yield ttasks
    ttasks.clean_up()


def verdict(printed: str) -> str:
    """Return the line that says how a run ended, without how long it took."""
    (line,) = re.findall(r"^(?:(?:NOT )?OK|CANCELLED|INTERRUPTED): .*$", printed, re.MULTILINE)
    return re.sub(r" in [\d.]+ m?s", "", line)


def test_a_task_that_waits_for_its_retry_is_shown_as_waiting_and_not_as_failed(command: Command) -> None:
    command.write(
        "w.yaml", "tasks:\n  flaky: {bash: 'echo busy >&2; exit 7', retries: {max_attempts: 2, backoff: 600}}\n"
    )
    running = command.start("run", "w.yaml")
    line = running.until("flaky failed after")
    assert re.search(r": exited with code 7: busy; trying again in (10 min 0 s|9 min 59 s)$", line.strip())
    due = r"attempt 1 failed, the next is due at \d\d:\d\d:\d\d"
    graph, task = command.graph_id(), command.task_id("flaky")

    assert re.search(r" running +1 waiting ", command("ls").stdout)
    assert re.search(rf" waiting +1 .*{due}", command("ls", "--tasks").stdout)
    assert re.search(rf" waiting +1 .*{due}", command("show").stdout)
    assert re.search(rf"^status +waiting \({due}\)$", command("show", task).stdout, re.MULTILINE)
    home, run, page = get_all(command.ledger, "/-/ttasks/ledger", f"graph/{graph}", f"task/{task}")
    assert "1 waiting" in home.seen and "Failures of the last day None." in home.seen
    assert "1 waiting" in run.seen and "What went wrong" not in run.seen
    assert 'class="state s-running"' in page.text and re.search(r"waiting (for|after) ", page.seen)

    code, printed = running.end(signal.SIGTERM)
    assert (code, verdict(printed)) == (143, "INTERRUPTED: 1 interrupted")
    assert "\nflaky: interrupted: its retry was to follow; exited with code 7: busy\n" in printed
    assert "flaky: failed" not in printed
    assert re.search(r" interrupted +1 interrupted ", command("ls").stdout)


def test_the_summary_of_a_run_says_the_duration_that_is_recorded(command: Command) -> None:
    command.write("one.yaml", "tasks:\n  one: {bash: 'true'}\n")
    printed = command("run", "one.yaml").stdout
    ((seconds,),) = command.sql("SELECT duration FROM runs")
    assert f"OK: 1 succeeded in {duration(seconds)}\n" in printed


def test_the_summary_tells_what_ran_from_what_was_kept(command: Command) -> None:
    command.write(
        "w.yaml",
        "tasks:\n"
        "  one: {bash: 'true'}\n"
        "  two: {bash: 'true'}\n"
        "  three: {bash: 'test -e mended', after: [one]}\n"
        "  four: {bash: 'true', after: [three]}\n"
        "  five: {bash: 'true', after: [four], finally: true}\n",
    )
    assert verdict(command("run", "w.yaml").stdout) == "NOT OK: 3 succeeded, 1 failed, 1 blocked"
    command.write("mended", "")
    retried = command("retry")
    assert (retried.returncode, verdict(retried.stdout)) == (0, "OK: 3 succeeded; kept from before: 2 succeeded")


def test_the_summary_of_a_resumed_run_does_not_count_what_had_ended_before(command: Command) -> None:
    command.write(
        "w.yaml",
        "tasks:\n"
        "  bad: {bash: 'exit 3'}\n"
        "  good: {bash: 'true'}\n"
        "  slow: {bash: 'touch begun; while ! test -e go; do sleep 0.05; done', after: [good]}\n"
        "  last: {bash: 'true', after: [slow]}\n",
    )
    running = command.start("run", "w.yaml")
    running.until("failed after")
    command.await_file("begun")
    assert verdict(running.end(signal.SIGTERM)[1]) == "INTERRUPTED: 1 pending, 1 succeeded, 1 failed, 1 interrupted"
    command.write("go", "")
    resumed = command("resume")
    assert resumed.returncode == 1
    assert verdict(resumed.stdout) == "NOT OK: 2 succeeded; kept from before: 1 succeeded, 1 failed"


def test_after_ctrl_c_the_summary_says_cancelled(command: Command) -> None:
    command.write(
        "w.yaml", "tasks:\n  slow: {bash: 'touch begun; sleep 1000'}\n  next: {bash: 'true', after: [slow]}\n"
    )
    running = command.start("run", "w.yaml")
    command.await_file("begun")
    code, printed = running.end(signal.SIGINT)
    assert (code, verdict(printed)) == (130, "CANCELLED: 1 pending, 1 cancelled")
    assert command.sql("SELECT status FROM runs") == [("cancelled",)]


def test_no_duration_is_negative_after_the_clock_was_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock goes back by an hour in the middle of a run, and between an attempt and its retry."""
    path, now, back = tmp_path / "ledger.db", clock.now, timedelta()
    monkeypatch.setattr(clock, "now", lambda: now() - back)

    def handle(context: TaskContext) -> None:
        nonlocal back
        back += timedelta(hours=1)
        if context.attempt == 1:
            raise ValueError("as told")

    graph = TaskGraph(title="g")
    graph.add(Task.bash("x", title="x"), retry_policy=RetryPolicy(2))
    with SQLiteStore(path) as store, TaskExecutor.empty(store) as executor:
        executor.register(TaskType.BASH, handle)
        assert graph.run(executor).ok
        (run,) = store.runs
        assert run.finished_at is not None and run.finished_at < run.started_at
        assert run.duration is not None and run.duration >= 0
        (task,) = graph
    for column in ("duration", None):  # as it was recorded, and as a ledger of an older format has it
        if column is None:
            with contextlib.closing(sqlite3.connect(path)) as connection, connection:
                connection.execute("UPDATE runs SET duration = NULL")
        for words in (["ls"], ["show"], ["ls", "--tasks"], ["show", task.id]):
            printed = CliRunner().invoke(cli, [*words, "--ledger", str(path)]).output
            assert re.search(r"\d m?s\b", printed)
            assert not re.search(r"-\d+(\.\d+)? (m?s|min)\b", printed)
        addresses = (
            "/-/ttasks/ledger",
            f"graph/{graph.id}",
            f"task/{task.id}",
            "/ledger/runs_per_day?since=2020-01-01",
        )
        for page in get_all(path, *addresses):
            assert page.status == 200
            assert not re.search(r"-\d+(\.\d+)? (m?s|min|h)\b", page.seen)
            assert not re.search(r'title="-\d', page.text)


def test_grace_and_output_that_is_not_waited_for_are_shown_with_their_task(command: Command) -> None:
    command.write("serve.yaml", "tasks:\n  serve: {bash: 'true', grace: 7, wait_for_output: false}\n")
    command("run", "serve.yaml")
    task = command.task_id("serve")
    shown = command("show", task).stdout
    assert re.search(r"^grace +7\.0$", shown, re.MULTILINE)
    assert re.search(r"^output +not waited for once the script has exited$", shown, re.MULTILINE)
    (page,) = get_all(command.ledger, f"/-/ttasks/ledger/task/{task}")
    assert "Grace 7.00 s Output not waited for once the script has exited" in page.seen
