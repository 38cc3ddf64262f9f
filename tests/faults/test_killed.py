"""kill -9, Ctrl-C and SIGTERM of the real command, and many processes at once."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from processes import alive
from ttasks.log.reading import Readers
from ttasks.log.verify import verify

TTASKS = [sys.executable, "-c", "from ttasks.cli import main; main()"]
CAMPAIGN = os.environ.get("TTASKS_CAMPAIGN") == "full"


def environment(ledger: Path) -> dict[str, str]:
    return {**os.environ, "TTASKS_LEDGER": str(ledger), "PYTHONUNBUFFERED": "1"}


def ttasks(ledger: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TTASKS, *arguments], env=environment(ledger), capture_output=True, text=True, timeout=60)


def start_until(ledger: Path, workflow: Path, text: str, **variables: str) -> tuple[subprocess.Popen[str], list[str]]:
    """Start a run and return when it has printed a line with `text`, and what it printed so far."""
    process = subprocess.Popen(
        [*TTASKS, "run", str(workflow)],
        env={**environment(ledger), **variables},
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return process, lines
    raise AssertionError(f"the run ended without {text!r}: {lines}")


def end_group_of(ledger: Path) -> None:
    """End what a killed runner left behind: the groups that its log names."""
    with contextlib.closing(sqlite3.connect(ledger)) as connection:
        for (data,) in connection.execute("SELECT data FROM events WHERE type = 'ProcessSpawned'"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(json.loads(data)["pid"], signal.SIGKILL)


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    workflow = tmp_path / "slow.yaml"
    workflow.write_text(
        textwrap.dedent(
            """
            title: slow
            tasks:
              first: {bash: "echo one; echo two"}
              second: {bash: "echo group $$; sleep 100 & echo begun; sleep 100", after: [first]}
              third: {bash: echo three, after: [second]}
              clean: {bash: echo cleaning, after: [third], finally: true}
            """
        )
    )
    return workflow


def printed_events(lines: list[str]) -> list[tuple[str, str]]:
    found = (re.match(r"\d\d:\d\d:\d\d (\w+) +(started|succeeded|failed)", line) for line in lines)
    return [(match[1], match[2]) for match in found if match]


def recorded_events(ledger: Path) -> list[tuple[str, str]]:
    words = {"TaskStarted": "started", "TaskSucceeded": "succeeded", "TaskFailed": "failed"}
    with contextlib.closing(sqlite3.connect(ledger)) as connection:
        rows = connection.execute(
            "SELECT tasks.name, events.type FROM events JOIN tasks ON tasks.id = events.task_id ORDER BY position"
        )
        return [(name, words[kind]) for name, kind in rows if kind in words]


def test_after_kill_9_the_ledger_verifies_and_show_tells_what_was_running(tmp_path: Path, slow: Path) -> None:
    ledger = tmp_path / "ledger.db"
    process, lines = start_until(ledger, slow, "begun")
    process.kill()
    process.communicate()
    try:
        verified = ttasks(ledger, "verify")
        assert verified.returncode == 0 and verified.stdout.startswith("clean:")
        assert recorded_events(ledger) == printed_events(lines)
        shown = ttasks(ledger, "show").stdout
        (second,) = [line for line in shown.splitlines() if line[9:].startswith(" second ")]
        assert "interrupted" in second and f"process {process.pid}" in second and "is gone" in second
    finally:
        end_group_of(ledger)


def test_after_kill_9_in_the_middle_of_a_line_no_file_of_the_ledger_holds_a_secret(tmp_path: Path) -> None:
    secret = "correct-horse-battery-staple"
    workflow = tmp_path / f"{secret}.yaml"
    workflow.write_text(
        "tasks:\n"
        f"  one: {{bash: 'echo $PASS; printf %s $PASS; echo {secret} >&2; printf %s ${{PASS:0:9}}; sleep 100'}}\n"
        "  two: {bash: 'echo $TOKEN; for i in {1..5000}; do echo $i $PASS; done; sleep 100', env: {TOKEN: not-told}}\n"
    )
    ledger = tmp_path / "ledgers" / "ledger.db"
    process, lines = start_until(ledger, workflow, "5000 ***", PASS=secret, TTASKS_REDACT="PASS")
    process.kill()
    rest, _ = process.communicate()
    try:
        held = {path.name: path.read_bytes() for path in ledger.parent.iterdir()}
        assert held["ledger.db-wal"] != b""
        assert ttasks(ledger, "verify").returncode == 0
        shown = [*lines, rest, ttasks(ledger, "show").stdout, ttasks(ledger, "events").stdout]
        for text in (secret, secret[:9], "not-told"):
            assert text not in "".join(shown)
            assert [name for name, content in held.items() if text.encode() in content] == []
    finally:
        end_group_of(ledger)


def test_ctrl_c_cancels_runs_finally_tasks_and_leaves_no_process(tmp_path: Path, slow: Path) -> None:
    ledger = tmp_path / "ledger.db"
    process, lines = start_until(ledger, slow, "begun")
    group = next(int(line.split()[-1]) for line in lines if "| group" in line)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert alive(group) == []
    assert "CANCELLED: 1 pending, 2 succeeded, 1 cancelled" in rest
    with contextlib.closing(sqlite3.connect(ledger)) as connection:
        assert connection.execute("SELECT status, cancel_requested_by IS NOT NULL, why FROM runs").fetchall() == [
            ("cancelled", 1, "Ctrl-C")
        ]
        statuses = dict(connection.execute("SELECT name, status FROM tasks").fetchall())
    assert statuses == {"first": "succeeded", "second": "cancelled", "third": "pending", "clean": "succeeded"}
    assert ttasks(ledger, "verify").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_termination_is_recorded_as_an_interruption(tmp_path: Path, slow: Path, number: signal.Signals) -> None:
    ledger = tmp_path / "ledger.db"
    process, lines = start_until(ledger, slow, "begun")
    group = next(int(line.split()[-1]) for line in lines if "| group" in line)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert alive(group) == []
    with contextlib.closing(sqlite3.connect(ledger)) as connection:
        assert connection.execute("SELECT status FROM runs").fetchall() == [("interrupted",)]
        statuses = dict(connection.execute("SELECT name, status FROM tasks").fetchall())
    assert statuses == {"first": "succeeded", "second": "interrupted", "third": "pending", "clean": "pending"}
    assert ttasks(ledger, "verify").returncode == 0


WRITER = """
import sys
from ttasks import SQLiteStore, Task, TaskExecutor, TaskType
with SQLiteStore(sys.argv[1]) as store:
    executor = TaskExecutor.empty(store)
    executor.register(TaskType.BASH, lambda context: None)
    executor.events.subscribe(lambda event: print(event.record.position, flush=True) if event.record else None)
    for index in range(int(sys.argv[2])):
        executor.execute(Task.bash(str(index)))
"""


@pytest.mark.campaign
def test_every_event_that_was_reported_with_a_record_survives_kill_9(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    subprocess.run([sys.executable, "-c", WRITER, str(ledger), "1"], check=True, capture_output=True)
    reported: set[int] = set()
    for round_ in range(100 if CAMPAIGN else 5):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(ledger), "100000"], stdout=subprocess.PIPE)
        for _ in range(1 + round_ * 7 % 40):
            reported.add(int(writer.stdout.readline()))
        writer.kill()
        rest = writer.communicate()[0]
        reported.update(int(line) for line in rest.split(b"\n")[:-1])
    with contextlib.closing(Readers.open(ledger)) as readers:
        assert verify(readers).problems == []
        assert reported <= {event.position for event in readers.events()}


APPENDER = """
import sys, threading
from pathlib import Path
from ttasks import clock
from ttasks.events.facts import TaskCreated, TaskRevised
from ttasks.events.status import OnInterrupted, TaskType
from ttasks.log.event_log import EventLog
from ttasks.log.transaction import Batch

path, threads, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
log = EventLog.open(path)
failures = []

def work(index):
    try:
        for number in range(count):
            id_ = clock.new_id()
            fact = TaskCreated("n", "t", TaskType.BASH, f"{index} {number}", "", clock.now(), OnInterrupted.RERUN)
            log.append(Batch(f"task-{id_}", [fact, TaskRevised({"title": "new"})], 0))
    except BaseException as error:
        failures.append(error)
        raise

workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
for worker in workers: worker.start()
for worker in workers: worker.join()
log.close()
sys.exit(1 if failures else 0)
"""


@pytest.mark.campaign
def test_four_processes_and_eight_threads_append_at_once_while_one_reads(tmp_path: Path) -> None:
    ledger, count = tmp_path / "ledger.db", 80 if CAMPAIGN else 10
    writers = [
        subprocess.Popen([sys.executable, "-c", APPENDER, str(ledger), "8", str(count)], stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    over = threading.Event()
    read: list[int] = []
    failures: list[BaseException] = []

    def look() -> None:
        try:
            while not ledger.exists() and not over.wait(0.01):
                continue
            with contextlib.closing(Readers.open(ledger)) as readers:
                while not over.is_set():
                    read.append(sum(1 for _ in readers.events()))
        except BaseException as failure:
            failures.append(failure)

    reader = threading.Thread(target=look)
    reader.start()
    errors = [writer.communicate(timeout=250)[1] for writer in writers]
    over.set()
    reader.join()
    assert [writer.returncode for writer in writers] == [0] * 4, errors
    assert failures == []
    assert read == sorted(read)
    with contextlib.closing(Readers.open(ledger)) as readers:
        report = verify(readers)
        assert report.problems == []
        created = [event.fact.payload for event in readers.events(type="TaskCreated")]
    assert sorted(created) == sorted(
        f"{index} {number}" for index in range(8) for number in range(count) for _ in "1234"
    )
