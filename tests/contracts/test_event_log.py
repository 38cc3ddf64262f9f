"""What every event log keeps to, in a file as in memory: all or none, once, in order, for good."""

from __future__ import annotations

import gc
import hashlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from freezegun import freeze_time

from strategies import HOSTILE, created, ended, graph_created, member, run_started, started
from ttasks.errors import DamagedLedgerError, LedgerError, LedgerUnwritableError, StreamConflictError, TransitionError
from ttasks.events import facts as f
from ttasks.events.codec import encode, iso
from ttasks.events.facts import Fact
from ttasks.log import event_log, transaction
from ttasks.log.chain import GENESIS, event_hash
from ttasks.log.event_log import EventLog
from ttasks.log.files import lock_path
from ttasks.log.listener import Listener
from ttasks.log.lock import WriterLock
from ttasks.log.projection import TaskFold
from ttasks.log.reading import Readers
from ttasks.log.transaction import Appended, Batch, Owned, OwnedRun, Transaction
from ttasks.log.verify import rebuild, verify
from ttasks.state.task import TaskState, snapshot
from ttasks.version import __version__

pytestmark = pytest.mark.usefixtures("outside_git")
OUTPUT = f.TaskOutput(1, (("stdout", "2026-11-24T08:00:00.000000Z", "hi\n"),))
WAIT_S = 60.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture(params=["file", "memory"])
def log(request: pytest.FixtureRequest, path: Path) -> Iterator[EventLog]:
    opened = EventLog.open(path if request.param == "file" else None)
    yield opened
    opened.close()


@pytest.fixture
def file_log(path: Path) -> Iterator[EventLog]:
    opened = EventLog.open(path)
    yield opened
    opened.close()


def new_task(name: str = "t", **changes: Any) -> Batch:
    return Batch(f"task-{name}", [created(**changes)], 0)


def contents(log: EventLog) -> list[tuple[str, int, str]]:
    """Return (stream, version, type) of everything that was appended, but for what each ledger begins with."""
    return [
        (event.stream, event.version, event.type)
        for event in log.readers.events()
        if event.type not in ("LedgerCreated", "RunnerStarted")
    ]


def check_sound(log: EventLog) -> None:
    assert verify(log.readers).problems == []


# --- what is appended ----------------------------------------------------------------------------------------------


def test_what_is_appended_can_be_read_and_is_what_was_returned(log: EventLog) -> None:
    (appended,) = log.append(Batch("task-t", [created(), started(), OUTPUT, ended(f.TaskSucceeded)], 0))

    assert [event.fact for event in appended.records] == [created(), started(), OUTPUT, ended(f.TaskSucceeded)]
    assert [event.version for event in appended.records] == [1, 2, 3, 4]
    assert list(log.readers.events(stream="task-t")) == appended.records


def test_an_append_returns_the_state_of_each_stream_after_it(log: EventLog) -> None:
    first, second = log.append(new_task("a"), Batch("task-b", [created("b"), started()], 0))

    assert (first.state, second.state) == (log.readers.task("a"), log.readers.task("b"))
    assert isinstance(second.state, TaskState)
    assert (second.state.title, second.state.running_attempt) == ("b", 1)


def test_batches_are_recorded_in_the_order_they_were_given(log: EventLog) -> None:
    log.append(new_task("b"), new_task("a"), Batch("graph-g", [graph_created(member("a"))], 0))

    assert [stream for stream, _, _ in contents(log)] == ["task-b", "task-a", "graph-g"]


def test_events_and_rows_come_together(log: EventLog) -> None:
    log.append(new_task(), Batch("graph-g", [graph_created(member("t")), run_started()], 0))

    task, graph, (run,) = log.readers.task("t"), log.readers.graph("g"), log.readers.runs("g")
    assert task is not None
    assert graph is not None
    assert (task.version, graph.version, list(graph.members), run.run) == (1, 2, ["t"], 1)


def test_positions_are_counted_without_gaps(log: EventLog) -> None:
    for name in "abc":
        log.append(new_task(name))

    positions = [event.position for event in log.readers.events()]
    assert positions == list(range(1, len(positions) + 1))


def test_several_batches_may_be_for_one_stream(log: EventLog) -> None:
    log.append(Batch("task-t", [created()], 0), Batch("task-t", [started()], 1))

    assert contents(log) == [("task-t", 1, "TaskCreated"), ("task-t", 2, "TaskStarted")]


def test_where_one_batch_is_refused_none_is_written(log: EventLog) -> None:
    log.append(new_task("a"))

    with pytest.raises(StreamConflictError):
        log.append(new_task("b"), Batch("task-a", [started()], 7), new_task("c"))

    assert contents(log) == [("task-a", 1, "TaskCreated")]
    assert log.readers.task("b") is None
    check_sound(log)


def test_where_one_fact_can_not_follow_none_is_written(log: EventLog) -> None:
    with pytest.raises(TransitionError, match="Cannot transition task from 'running' to 'blocked'"):
        log.append(Batch("task-t", [created(), started(), f.TaskBlocked("p")], 0))

    assert contents(log) == []
    check_sound(log)


def test_after_a_refusal_the_stream_goes_on_as_if_nothing_had_been_asked(log: EventLog) -> None:
    log.append(new_task())
    with pytest.raises(TransitionError):
        log.append(Batch("task-t", [started(), f.TaskBlocked()], 1))

    log.append(Batch("task-t", [started()], 1))

    assert contents(log) == [("task-t", 1, "TaskCreated"), ("task-t", 2, "TaskStarted")]
    check_sound(log)


def test_an_unknown_kind_of_stream_is_refused(log: EventLog) -> None:
    with pytest.raises(LedgerError, match="no kind of stream like 'tusk-1'"):
        log.append(Batch("tusk-1", [created()], 0))


def test_two_attempts_in_one_commit_both_have_their_row(log: EventLog) -> None:
    failed = ended(f.TaskFailed, error="first")
    log.append(Batch("task-t", [created(), started(1), failed, started(2), ended(f.TaskSucceeded, 2)], 0))

    assert [attempt.status for attempt in log.readers.attempts("t")] == ["failed", "succeeded"]
    check_sound(log)


def test_two_runs_in_one_commit_both_have_their_row(log: EventLog) -> None:
    over = f.GraphRunFinished(1, f.RunStatus.FAILED)
    log.append(Batch("graph-g", [graph_created(), run_started(1), over, run_started(2)], 0))

    assert [run.status for run in log.readers.runs("g")] == ["failed", "running"]
    check_sound(log)


# --- what is expected ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expected", [0, 1, 3])
def test_an_append_that_expects_another_version_conflicts_and_says_so(log: EventLog, expected: int) -> None:
    log.append(Batch("task-t", [created(), started()], 0))

    with pytest.raises(StreamConflictError) as conflict:
        log.append(Batch("task-t", [OUTPUT], expected))

    error = conflict.value
    assert (error.stream, error.expected_version, error.version) == ("task-t", expected, 2)
    assert "nothing was written" in str(error)


def test_a_stream_that_does_not_exist_has_no_version(log: EventLog) -> None:
    with pytest.raises(StreamConflictError) as conflict:
        log.append(Batch("task-t", [started()], 1))

    assert conflict.value.version == 0


def test_facts_of_a_running_attempt_need_not_know_what_came_between(log: EventLog) -> None:
    log.append(Batch("task-t", [created(), started()], 0))
    log.append(Batch("task-t", [f.TaskCancelRequested("ann")], None))

    (appended,) = log.append(Batch("task-t", [OUTPUT], Owned(1)))

    assert appended.records[0].version == 4


@pytest.mark.parametrize(
    "history",
    [[created()], [created(), started(), ended(f.TaskFailed)], [created(), f.TaskStarted()]],
    ids=["never started", "over", "running by hand"],
)
def test_facts_of_an_attempt_that_does_not_run_are_refused(log: EventLog, history: Sequence[Fact]) -> None:
    log.append(Batch("task-t", history, 0))

    with pytest.raises(StreamConflictError, match="attempt 1 of task-t no longer runs"):
        log.append(Batch("task-t", [OUTPUT], Owned(1)))


def test_facts_of_an_earlier_attempt_are_refused(log: EventLog) -> None:
    log.append(Batch("task-t", [created(), started(), ended(f.TaskFailed)], 0))
    log.append(Batch("task-t", [started(2)], 3))

    with pytest.raises(StreamConflictError):
        log.append(Batch("task-t", [ended(f.TaskSucceeded, 1)], Owned(1)))


def test_an_attempt_whose_retry_waits_still_owns_its_task(log: EventLog) -> None:
    retry = f.TaskRetryScheduled(1, 1, 5.0, datetime(2026, 1, 1, tzinfo=UTC))
    log.append(Batch("task-t", [created(), started(), ended(f.TaskFailed), retry], 0))

    log.append(Batch("task-t", [started(2, retry=1)], Owned(1)))

    assert contents(log)[-1] == ("task-t", 5, "TaskStarted")


@pytest.mark.parametrize("fact", [ended(f.TaskSucceeded), ended(f.TaskFailed)])
def test_an_end_that_ignores_a_request_to_cancel_is_refused(log: EventLog, fact: Fact) -> None:
    log.append(Batch("task-t", [created(), started()], 0))
    log.append(Batch("task-t", [f.TaskCancelRequested("ann")], None))

    with pytest.raises(StreamConflictError, match="was asked to cancel"):
        log.append(Batch("task-t", [fact], Owned(1)))

    assert len(contents(log)) == 3


def test_an_end_that_heard_the_request_to_cancel_is_recorded(log: EventLog) -> None:
    log.append(Batch("task-t", [created(), started()], 0))
    log.append(Batch("task-t", [f.TaskCancelRequested("ann")], None))

    log.append(Batch("task-t", [OUTPUT, ended(f.TaskCancelled)], Owned(1)))

    assert contents(log)[-1] == ("task-t", 5, "TaskCancelled")


def test_an_end_whose_runner_knows_of_the_request_may_be_any(log: EventLog) -> None:
    log.append(Batch("task-t", [created(), started()], 0))
    log.append(Batch("task-t", [f.TaskCancelRequested("ann")], None))

    log.append(Batch("task-t", [ended(f.TaskSucceeded)], Owned(1, knows_cancel=True)))

    assert contents(log)[-1] == ("task-t", 4, "TaskSucceeded")


def test_a_request_conflicts_with_nothing(log: EventLog) -> None:
    log.append(Batch("task-t", [created(), started()], 0))

    for who in ("ann", "bob"):
        log.append(Batch("task-t", [f.TaskCancelRequested(who)], None))

    assert [type_ for _, _, type_ in contents(log)][2:] == ["TaskCancelRequested"] * 2


def test_a_request_for_what_does_not_exist_is_refused(log: EventLog) -> None:
    with pytest.raises(LedgerError, match="can't be event 1 of task t"):
        log.append(Batch("task-t", [f.TaskCancelRequested("ann")], None))


@pytest.mark.parametrize(
    ("history", "run"),
    [
        ([graph_created()], 1),
        ([graph_created(), run_started(), f.GraphRunFinished(1, f.RunStatus.FAILED)], 1),
        ([graph_created(), run_started(), f.GraphRunFinished(1, f.RunStatus.FAILED), run_started(2)], 1),
    ],
    ids=["never started", "over", "an earlier one"],
)
def test_facts_of_a_run_that_does_not_go_on_are_refused(log: EventLog, history: Sequence[Fact], run: int) -> None:
    log.append(Batch("graph-g", history, 0))

    with pytest.raises(StreamConflictError, match=f"run {run} of graph-g is not this process's any more"):
        log.append(Batch("graph-g", [f.GraphCancelRequested("ann", "")], OwnedRun(run)))

    assert len(contents(log)) == len(history)


def test_facts_of_a_run_are_only_for_the_process_that_runs_it(path: Path) -> None:
    with closing(EventLog.open(path)) as runs_it:
        runs_it.append(Batch("graph-g", [graph_created(), run_started()], 0))
        runs_it.append(Batch("graph-g", [f.GraphCancelRequested("ann", "")], OwnedRun(1)))

    with closing(EventLog.open(path)) as another:  # opened anew, this process is another runner
        with pytest.raises(StreamConflictError, match=r"is not this process's any more \(the last is GraphCancelRe"):
            another.append(Batch("graph-g", [f.GraphCancelRequested("bob", "")], OwnedRun(1)))
        assert len(contents(another)) == 3


def test_facts_of_a_run_are_not_for_a_task(log: EventLog) -> None:
    log.append(Batch("task-t", [created(), started()], 0))

    with pytest.raises(StreamConflictError, match="run 1 of task-t"):
        log.append(Batch("task-t", [OUTPUT], OwnedRun(1)))


# --- the envelope --------------------------------------------------------------------------------------------------


def test_the_cause_may_be_an_earlier_batch_whose_last_event_it_is(log: EventLog) -> None:
    end = Batch("task-a", [created(), started(), ended(f.TaskSucceeded)], 0)
    follows = Batch("task-b", [created(), started()], 0, cause=end)

    first, second = log.append(end, follows)

    assert [event.cause for event in first.records] == [None, None, None]
    assert [event.cause for event in second.records] == [first.records[-1].position] * 2


def test_the_cause_may_be_the_position_of_an_earlier_event(log: EventLog) -> None:
    (first,) = log.append(new_task("a"))

    (second,) = log.append(Batch("task-b", [created()], 0, cause=first.records[0].position))

    assert second.records[0].cause == first.records[0].position


def test_all_events_of_a_commit_have_one_time_and_the_next_commit_another(log: EventLog) -> None:
    with freeze_time("2031-05-06 07:08:09.123456", auto_tick_seconds=1):
        first, second = log.append(Batch("task-a", [created(), started()], 0), new_task("b"))
        (third,) = log.append(new_task("c"))

    times = {event.recorded_at for event in first.records + second.records}
    assert len(times) == 1
    assert times.pop() < third.records[0].recorded_at


def test_recorded_at_is_the_clocks_time_in_utc_to_the_microsecond(log: EventLog) -> None:
    with freeze_time("2031-05-06 07:08:09.123456"):
        log.append(new_task())

    (event,) = log.readers.events(stream="task-t")
    assert event.recorded_at == datetime(2031, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
    assert event.recorded_at.tzinfo is UTC


def test_recorded_at_is_read_when_it_is_recorded(log: EventLog) -> None:
    before = datetime.now(UTC)
    (appended,) = log.append(new_task())

    assert before <= appended.records[0].recorded_at <= datetime.now(UTC)


def test_each_hash_covers_the_one_before_and_every_column(log: EventLog) -> None:
    log.append(new_task(title="grüße 😀"), Batch("task-b", [created(), started()], 0))

    before = GENESIS
    for event in log.readers.events():
        columns = (
            event.position, event.stream, event.version, event.type, 1, iso(event.recorded_at),
            event.runner, event.cause, encode(event.fact),
        )  # fmt: skip
        assert event.hash == event_hash(before, columns)
        before = event.hash
    assert log.readers.head()[1] == before


# --- who appends ---------------------------------------------------------------------------------------------------


def test_a_ledger_begins_with_its_own_creation(log: EventLog) -> None:
    first = next(log.readers.events())

    assert (first.position, first.stream, first.version, first.runner, first.cause) == (1, "ledger", 1, None, None)
    assert isinstance(first.fact, f.LedgerCreated)
    assert first.fact.ledger == log.ledger == log.readers.ledger()
    assert first.fact.ttasks_version == __version__
    assert len(bytes.fromhex(first.fact.digest_key)) == 32


def test_before_its_first_event_a_process_says_who_it_is(log: EventLog) -> None:
    log.append(new_task())

    _, runner, task = log.readers.events()
    assert isinstance(runner.fact, f.RunnerStarted)
    assert runner.stream.startswith("runner-")
    assert runner.runner == runner.position == 2
    assert task.runner == 2


def test_what_a_process_says_of_itself_is_true(log: EventLog) -> None:
    log.append(new_task())

    runner = log.readers.runner(2)
    assert runner is not None
    assert (runner.pid, runner.host, runner.cwd) == (os.getpid(), os.uname().nodename, str(Path.cwd()))
    assert runner.command == tuple(sys.orig_argv)
    assert (runner.ttasks_version, runner.platform) == (__version__, sys.platform)
    assert runner.python_version == ".".join(map(str, sys.version_info[:3]))
    assert (runner.boot_id, runner.process_start) != ("", "unknown")


def test_a_process_says_who_it_is_once(log: EventLog) -> None:
    for name in "abc":
        log.append(new_task(name))

    assert len(list(log.readers.events(type="RunnerStarted"))) == 1


def test_only_opening_says_nothing_of_who_opened(log: EventLog) -> None:
    assert [event.type for event in log.readers.events()] == ["LedgerCreated"]


def test_in_a_git_checkout_the_runner_is_described_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(tmp_path)]
    for command in (["init", "-q", "-b", "trunk"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *command], check=True, env={**os.environ, "HOME": str(tmp_path)})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(event_log, "DESCRIBE_WAIT_S", WAIT_S)

    log = EventLog.open(tmp_path / "ledger.db")
    log.append(new_task())
    log.close()  # waits for git

    runner = Readers.open(tmp_path / "ledger.db").runner(2)
    assert runner is not None
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert (runner.git_root, runner.git_commit, runner.git_branch) == (str(tmp_path), commit, "trunk")
    assert runner.git_dirty is True, "the ledger itself is untracked"


def test_what_goes_wrong_with_describing_the_runner_is_no_failure_of_the_append(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> None:
        raise PermissionError("a folder above can't be looked into")

    monkeypatch.setattr(event_log, "git_root", refused)

    log.append(new_task())

    assert contents(log) == [("task-t", 1, "TaskCreated")]


def test_a_program_that_ends_without_closing_waits_a_moment_for_its_description(tmp_path: Path) -> None:
    here = tmp_path / "here"
    subprocess.run(["git", "init", "-q", str(here)], check=True, env={**os.environ, "HOME": str(tmp_path)})
    slow_git = tmp_path / "bin" / "git"  # a fake: the real one, only slower
    slow_git.parent.mkdir()
    slow_git.write_text(f'#!/bin/sh\nsleep 0.1\nPATH={os.environ["PATH"]} exec git "$@"\n', "utf-8")
    slow_git.chmod(0o755)

    run_forking(
        here,
        f"os.environ['PATH'] = {str(slow_git.parent)!r} + ':' + os.environ['PATH']",
        "from ttasks.log import event_log",
        f"event_log.DESCRIBE_WAIT_S = {WAIT_S}",
        "only_opened = EventLog.open(Path('other.db'))",
        "log = EventLog.open(Path('ledger.db'))",
        "log.append(new('a'))",
    )

    runner = Readers.open(here / "ledger.db").runner(2)
    assert runner is not None
    assert runner.git_root == str(here)


def test_what_git_says_after_the_ledger_was_closed_does_not_open_it_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_say = threading.Event()

    def late() -> Path:
        assert may_say.wait(WAIT_S)
        return path.parent

    monkeypatch.setattr(event_log, "git_root", late)
    monkeypatch.setattr(event_log, "DESCRIBE_WAIT_S", 0)
    log = EventLog.open(path)
    log.append(new_task())
    describer = log._describer
    assert describer is not None
    log.close()

    may_say.set()
    describer.join(WAIT_S)

    assert {each.name for each in path.parent.glob("ledger*")} == {path.name, lock_path(path).name}
    assert [event.type for event in Readers.open(path).events()] == ["LedgerCreated", "RunnerStarted", "TaskCreated"]
    with pytest.raises(LedgerUnwritableError, match="was closed; nothing was written"):
        log.append(new_task("b"))
    assert log._lock is not None
    assert log._lock.descriptor is None


def test_one_thread_listens_however_many_begin_to_watch_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    others: list[threading.Thread] = []
    second, listener, log = threading.Event(), event_log.Listener, EventLog.open(path)

    def slowly(*arguments: Any) -> Listener:
        made.append(arguments)
        if len(made) > 1:
            second.set()
        else:
            others.append(threading.Thread(target=log.watch, args=("task-b", lambda: None)))
            others[0].start()
            second.wait(0.2)  # for one that is not to come
        return listener(*arguments)

    monkeypatch.setattr(event_log, "Listener", slowly)
    log.watch("task-a", lambda: None)
    others[0].join(WAIT_S)

    assert len(made) == 1
    log.close()
    log.watch("task-c", lambda: None)
    assert log._listener is None, "one that nobody would end"


# --- reading -------------------------------------------------------------------------------------------------------


@pytest.fixture
def three(log: EventLog) -> EventLog:
    """A log of two events of its own (1, 2), a: created, started (3, 4), b: created (5), a: failed (6)."""
    log.append(Batch("task-a", [created(), started()], 0))
    log.append(new_task("b"))
    log.append(Batch("task-a", [ended(f.TaskFailed)], 2))
    return log


@pytest.mark.parametrize(
    ("question", "positions"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"stream": "task-a"}, [3, 4, 6]),
        ({"stream": "task-c"}, []),
        ({"type": "TaskCreated"}, [3, 5]),
        ({"stream": "task-b", "type": "TaskCreated"}, [5]),
        ({"after": 4}, [5, 6]),
        ({"after": 6}, []),
        ({"after": 3, "stream": "task-a"}, [4, 6]),
        ({"limit": 2}, [1, 2]),
        ({"limit": 0}, []),
        ({"after": 2, "limit": 2, "stream": "task-a"}, [3, 4]),
    ],
)
def test_events_are_read_by_stream_by_type_after_a_position(
    three: EventLog, question: dict[str, Any], positions: list[int]
) -> None:
    assert [event.position for event in three.readers.events(**question)] == positions


def test_a_long_log_is_read_whole_page_by_page(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttasks.log.reading.PAGE_EVENTS", 3)
    log.append(Batch("task-t", [created(), started(), *[OUTPUT] * 8], 0))

    assert [event.version for event in log.readers.events(stream="task-t")] == list(range(1, 11))
    assert [event.version for event in log.readers.events(stream="task-t", limit=7)] == list(range(1, 8))


@pytest.mark.parametrize("characters", [1, 300, 1000])
def test_large_events_make_shorter_pages(log: EventLog, monkeypatch: pytest.MonkeyPatch, characters: int) -> None:
    monkeypatch.setattr("ttasks.log.reading.PAGE_EVENTS", 4)
    monkeypatch.setattr("ttasks.log.reading.PAGE_CHARACTERS", characters)
    large = f.TaskOutput(1, (("stdout", "t", "x" * 200),))
    log.append(Batch("task-t", [created(), started(), *[large] * 9], 0))

    assert [event.version for event in log.readers.events(stream="task-t")] == list(range(1, 12))
    assert [event.version for event in log.readers.events(stream="task-t", limit=7)] == list(range(1, 8))
    assert list(log.readers.events(stream="task-none")) == []


def test_the_latest_tasks_come_first(log: EventLog) -> None:
    for name in "abc":
        log.append(new_task(name))
    assert [task.id for task in log.readers.tasks()] == ["a", "b", "c"]
    assert [task.id for task in log.readers.tasks(latest=2)] == ["c", "b"]


def test_the_last_lines_are_the_last_that_ended_and_then_those_that_did_not(log: EventLog) -> None:
    chunks = [("stdout", "one\ntw"), ("stderr", "warn"), ("stdout", "o\nthree\nfo"), ("stderr", "ing\nra")]
    outputs = [f.TaskOutput(1, ((stream, "t", text),)) for stream, text in chunks]
    log.append(Batch("task-t", [created(), started(), *outputs], 0))
    whole = [("stdout", "one"), ("stdout", "two"), ("stdout", "three"), ("stderr", "warning")]
    whole += [("stdout", "fo"), ("stderr", "ra")]
    for count in range(1, 8):
        assert log.readers.last_lines("t", 1, count) == whole[-count:]


def test_of_a_last_line_that_is_long_the_end_is_shown(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttasks.log.reading.LINE_CHARACTERS_MAX", 4)
    texts = ("123", "45", "6\nabcd\nabcde\n1", "2345")
    outputs = [f.TaskOutput(1, (("stdout", "t", text),)) for text in texts]
    log.append(Batch("task-t", [created(), started(), *outputs], 0))
    assert [line for _, line in log.readers.last_lines("t", 1, 9)] == ["…3456", "abcd", "…bcde", "…2345"]


def test_who_reads_page_by_page_sees_what_is_appended_meanwhile(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttasks.log.reading.PAGE_EVENTS", 1)
    log.append(new_task("a"))
    events = log.readers.events(type="TaskCreated")
    next(events)

    log.append(new_task("b"))

    assert [event.stream for event in events] == ["task-b"]


def test_the_version_of_a_stream_counts_its_events(three: EventLog) -> None:
    assert [three.readers.version(stream) for stream in ("task-a", "task-b", "task-c")] == [3, 1, 0]


def test_what_an_attempt_returned_is_not_what_another_returned_before_it(log: EventLog) -> None:
    (appended,) = log.append(Batch("task-t", [created(), started(), ended(f.TaskFailed)], 0))
    failed = f.TaskImported(snapshot(appended.state))
    log.append(Batch("task-u", [created(), started(), ended(f.TaskSucceeded, output="first")], 0))
    log.append(Batch("task-u", [failed, started(2), ended(f.TaskSucceeded, 2, output="second")], 3))

    assert log.readers.returned("u", 2) == "second"
    assert log.readers.returned("u", 3) is None


def test_what_another_opening_appended_is_read_and_followed(path: Path) -> None:
    for name in "ab":
        opened = EventLog.open(path)
        opened.append(new_task(name))
        opened.close()

    opened = EventLog.open(path)
    assert [stream for stream, _, _ in contents(opened)] == ["task-a", "task-b"]
    check_sound(opened)
    opened.close()


def test_all_who_open_one_path_share_one_log(path: Path) -> None:
    one, other = EventLog.open(path), EventLog.open(path.parent / "here" / ".." / path.name)

    assert one is other
    one.close()
    other.append(new_task())
    other.close()


# --- hostile text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [*HOSTILE, "x" * 2**20, "😀" * 2**18, "a\0\udcff" * 2**16], ids=lambda text: text[:4])
def test_hostile_text_comes_back_from_events_and_rows(log: EventLog, text: str) -> None:
    fact = created(text, name=text, payload=text, description=text, cwd=text, env={text: text})
    output = f.TaskOutput(1, (("stdout", "t", text),))

    log.append(Batch("task-t", [fact, started(handler=text, cwd=text), output], 0))
    log.append(Batch("graph-g", [graph_created(member("t"), title=text, source=f.Source(text, "00"))], 0))

    assert [event.fact for event in log.readers.events(stream="task-t")][::2] == [fact, output]
    task, (attempt,), graph = log.readers.task("t"), log.readers.attempts("t"), log.readers.graph("g")
    assert task is not None
    assert graph is not None
    assert graph.source is not None
    assert (task.name, task.title, task.payload, task.description, task.cwd) == (text,) * 5
    assert task.env == {text: text}
    assert (attempt.handler, graph.title, graph.source.path) == (text, text, text)
    assert log.readers.printed("t", 1)["stdout"] == text


def test_two_surrogates_that_make_a_character_fold_as_they_are_read_back(log: EventLog) -> None:
    (appended,) = log.append(new_task(title="\ud83d\ude00"))

    assert appended.state.title == "😀"
    assert appended.state == log.readers.task("t")
    check_sound(log)


# --- guards --------------------------------------------------------------------------------------------------------

VALUES = "'task-a', 1, 'TaskDeleted', 1, '2026', 2, NULL, '{}', zeroblob(32)"
COLUMNS = "(position, stream, version, type, type_version, recorded_at, runner, cause, data, hash)"


@contextmanager
def raw(log: EventLog) -> Iterator[sqlite3.Connection]:
    """Lend a connection that may write, past the log."""
    if log.path is None:
        yield log.readers.ask(lambda shared: shared)
    else:
        with closing(sqlite3.connect(log.path, isolation_level=None)) as connection:
            yield connection


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET data = '{}' WHERE position = 3",
        "UPDATE events SET hash = zeroblob(32)",
        "UPDATE OR REPLACE events SET position = 2 WHERE position = 3",
        "DELETE FROM events WHERE position = 6",
        "DELETE FROM events",
        f"INSERT OR REPLACE INTO events {COLUMNS} VALUES (3, {VALUES})",
        f"INSERT OR REPLACE INTO events {COLUMNS} VALUES (7, {VALUES})",
        f"REPLACE INTO events {COLUMNS} VALUES (6, {VALUES})",
        f"INSERT INTO events {COLUMNS} VALUES (9, {VALUES.replace('1', '4', 1)})",
        f"INSERT INTO events {COLUMNS} VALUES (7, {VALUES.replace('1', '5', 1)})",
        f"INSERT INTO events {COLUMNS} VALUES (0, {VALUES.replace('task-a', 'task-z')})",
        f"INSERT OR IGNORE INTO events {COLUMNS} VALUES (3, {VALUES})",
    ],
)
def test_the_database_refuses_to_change_remove_or_reorder_events(three: EventLog, statement: str) -> None:
    before = list(three.readers.events())

    with raw(three) as connection, pytest.raises(sqlite3.IntegrityError, match=r"events are (never|only)"):
        connection.execute(statement)

    assert list(three.readers.events()) == before


# --- when something goes wrong -------------------------------------------------------------------------------------


def test_when_the_database_refuses_nothing_is_written_and_the_next_append_works(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append(new_task("a"))

    def refuses(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as broken:
        broken.setattr(TaskFold, "write", refuses)
        with pytest.raises(LedgerUnwritableError, match="disk I/O error; nothing was written"):
            log.append(Batch("task-a", [started()], 1))

    log.append(Batch("task-a", [f.TaskRevised({"title": "after"})], 1))
    assert contents(log) == [("task-a", 1, "TaskCreated"), ("task-a", 2, "TaskRevised")]
    check_sound(log)


def test_a_fact_that_can_not_be_encoded_is_refused_before_anything_is_locked(log: EventLog) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.append(new_task("a"), new_task("b", timeout=float("nan")))

    assert contents(log) == []


def test_a_refused_process_says_who_it_is_with_the_next_append(log: EventLog) -> None:
    with pytest.raises(StreamConflictError):
        log.append(Batch("task-t", [started()], 1))
    log.append(new_task())

    assert [event.type for event in log.readers.events()] == ["LedgerCreated", "RunnerStarted", "TaskCreated"]
    check_sound(log)


def test_a_process_whose_registration_failed_registers_again_and_leaves_one_lock(
    file_log: EventLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "commit", refused)
        with pytest.raises(LedgerUnwritableError):
            file_log.append(new_task())
    first = file_log.runner_id
    file_log.append(new_task())

    assert file_log.runner_id not in (None, first)
    assert [event.type for event in file_log.readers.events()] == ["LedgerCreated", "RunnerStarted", "TaskCreated"]
    assert [each.name for each in path.parent.glob("*-runner-*")] == [f"ledger.db-runner-{file_log.runner_id}"]


# --- many threads --------------------------------------------------------------------------------------------------


@dataclass
class Commits:
    """Every commit of a log, and what a test does before and after each (they are told which it is, from 1)."""

    groups: list[int] = field(default_factory=list)
    before: Callable[[int], None] = lambda _: None
    after: Callable[[int], None] = lambda _: None


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> Commits:
    seen = Commits()
    commit = Transaction.commit

    def watched(transaction: Transaction, group: Any, at: Any, committed: Any) -> None:
        seen.groups.append(len(group))
        number = len(seen.groups)
        seen.before(number)
        commit(transaction, group, at, committed)
        seen.after(number)

    monkeypatch.setattr(Transaction, "commit", watched)
    return seen


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, "it never was"
        time.sleep(0.001)


def wait_for_waiting(log: EventLog, count: int) -> None:
    """Return when so many appends wait for the one that commits."""
    wait_until(lambda: len(log._queue) == 1 + count)


@dataclass
class Caller:
    """A thread with one append, and what came of it."""

    log: EventLog
    batch: Batch
    appended: list[Appended] | None = None
    raised: BaseException | None = None

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._append, daemon=True)
        self.thread.start()

    def _append(self) -> None:
        try:
            self.appended = self.log.append(self.batch)
        except BaseException as error:
            self.raised = error

    def finish(self) -> None:
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive(), "an append waits for ever"


def append_behind_a_commit(log: EventLog, commits: Commits, batches: Sequence[Batch]) -> list[Caller]:
    """Append each batch in a thread of its own; the first to commit does so when all others wait behind it."""
    log.append(new_task("warm-up"))
    commits.groups.clear()
    before = commits.before

    def hold(number: int) -> None:
        if number == 1:
            wait_for_waiting(log, len(batches) - 1)
        before(number)

    commits.before = hold
    callers = [Caller(log, batch) for batch in batches]
    for caller in callers:
        caller.finish()
    return callers


def test_appends_that_wait_while_one_commits_share_the_next_commit(log: EventLog, commits: Commits) -> None:
    callers = append_behind_a_commit(log, commits, [new_task(str(number)) for number in range(8)])

    assert commits.groups == [1, 7]
    assert [caller.raised for caller in callers] == [None] * 8
    assert len(contents(log)) == 9
    check_sound(log)


def test_each_of_many_appends_gets_its_own_events_back(log: EventLog, commits: Commits) -> None:
    callers = append_behind_a_commit(log, commits, [new_task(str(number)) for number in range(8)])

    for caller in callers:
        assert caller.appended is not None
        ((event,),) = (batch.records for batch in caller.appended)
        assert event.stream == caller.batch.stream
        assert event == next(log.readers.events(stream=event.stream))


def test_of_appends_that_share_a_commit_only_the_one_that_conflicts_is_refused(log: EventLog, commits: Commits) -> None:
    batches = [new_task("a"), new_task("b"), Batch("task-none", [started()], 5), new_task("c")]

    callers = append_behind_a_commit(log, commits, batches)

    assert [type(caller.raised) for caller in callers if caller.raised is not None] == [StreamConflictError]
    assert {stream for stream, _, _ in contents(log)} == {"task-warm-up", "task-a", "task-b", "task-c"}
    check_sound(log)


def test_of_appends_to_one_stream_that_share_a_commit_the_first_wins(log: EventLog, commits: Commits) -> None:
    callers = append_behind_a_commit(log, commits, [new_task("other"), *[new_task("same") for _ in range(4)]])

    assert sorted(type(caller.raised).__name__ for caller in callers) == ["NoneType"] * 2 + ["StreamConflictError"] * 3
    check_sound(log)


def test_where_a_shared_commit_fails_each_append_is_tried_alone(log: EventLog, commits: Commits) -> None:
    def second_fails(number: int) -> None:
        if number == 2:
            raise sqlite3.OperationalError("disk I/O error")

    commits.before = second_fails

    callers = append_behind_a_commit(log, commits, [new_task(str(number)) for number in range(4)])

    assert commits.groups[:2] == [1, 3]
    assert [caller.raised for caller in callers] == [None] * 4
    assert len(contents(log)) == 5
    check_sound(log)


def test_appends_that_wait_for_another_process_together_wait_once(
    file_log: EventLog, commits: Commits, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def never(_: WriterLock, timeout_s: float) -> bool:
        waits.append(timeout_s)
        return False

    commits.before = lambda _: monkeypatch.setattr(WriterLock, "acquire", never) if len(file_log._queue) > 1 else None

    callers = append_behind_a_commit(file_log, commits, [new_task(str(number)) for number in range(5)])

    assert sorted(type(caller.raised).__name__ for caller in callers) == ["LedgerUnwritableError"] * 4 + ["NoneType"]
    assert len(waits) == 1
    monkeypatch.undo()
    file_log.append(new_task("afterwards"))
    check_sound(file_log)


def test_eight_threads_lose_nothing_and_count_without_gaps(log: EventLog, commits: Commits) -> None:
    log.append(Batch("task-shared", [created(), started()], 0))
    barrier = threading.Barrier(8)
    errors: list[BaseException] = []

    def work(thread: int) -> None:
        barrier.wait()
        try:
            for number in range(15):
                log.append(new_task(f"{thread}-{number}"), Batch("task-shared", [OUTPUT], None))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(thread,), daemon=True) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert errors == []
    assert [event.version for event in log.readers.events(stream="task-shared")] == list(range(1, 123))
    assert len({stream for stream, _, _ in contents(log)}) == 121
    assert len(commits.groups) <= 121
    check_sound(log)


# --- Ctrl-C --------------------------------------------------------------------------------------------------------


def check_only_one_was_interrupted(log: EventLog, callers: list[Caller], *, is_written: bool) -> None:
    """Check that one append raised KeyboardInterrupt, and all others are in the log once."""
    interrupted = [caller for caller in callers if caller.raised is not None]
    assert [type(caller.raised) for caller in interrupted] == [KeyboardInterrupt]
    streams = [stream for stream, _, _ in contents(log)]
    for caller in callers:
        assert streams.count(caller.batch.stream) == (is_written if caller in interrupted else 1)
    log.append(new_task("afterwards"))
    check_sound(log)


def test_ctrl_c_before_a_commit_begins_concerns_only_who_it_hit(log: EventLog, commits: Commits) -> None:
    def interrupt(number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    commits.before = interrupt

    callers = append_behind_a_commit(log, commits, [new_task(str(number)) for number in range(5)])

    check_only_one_was_interrupted(log, callers, is_written=False)


def test_ctrl_c_inside_a_commit_before_it_is_done_concerns_only_who_it_hit(
    log: EventLog, commits: Commits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    commits.before = lambda number: monkeypatch.setattr(TaskFold, "write", interrupted) if number == 2 else None

    callers = append_behind_a_commit(log, commits, [new_task(str(number)) for number in range(5)])

    check_only_one_was_interrupted(log, callers, is_written=False)


def test_ctrl_c_right_after_a_commit_concerns_only_who_it_hit(log: EventLog, commits: Commits) -> None:
    def interrupt(number: int) -> None:
        if number == 2 and commits.groups[-1] > 1:
            raise KeyboardInterrupt

    commits.after = interrupt

    callers = append_behind_a_commit(log, commits, [new_task(str(number)) for number in range(5)])

    check_only_one_was_interrupted(log, callers, is_written=True)


class PressedAtFirst(list[Any]):
    """Where Ctrl-C comes before the first item is in."""

    was_pressed = False

    def append(self, item: Any) -> None:
        if not self.was_pressed:
            self.was_pressed = True
            raise KeyboardInterrupt
        super().append(item)


def test_ctrl_c_between_a_commit_and_its_note_takes_nothing_back(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Transaction.commit

    def pressed(transaction: Transaction, group: Any, at: Any, committed: Any) -> None:
        noted = PressedAtFirst()
        try:
            commit(transaction, group, at, noted)
        finally:
            committed += noted

    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "commit", pressed)
        with pytest.raises(KeyboardInterrupt):
            log.append(new_task("a"))
    log.append(new_task("b"))

    assert [stream for stream, _, _ in contents(log)] == ["task-a", "task-b"]
    check_sound(log)


@pytest.mark.parametrize("calls", range(1, 7))
def test_ctrl_c_in_any_function_that_runs_after_a_commit_has_nobody_committed_again(
    log: EventLog, commits: Commits, calls: int
) -> None:
    left = calls

    def press(frame: FrameType, event: str, _: object) -> None:
        nonlocal left
        left -= event == "call" and frame.f_code.co_filename == event_log.__file__
        if left == 0:
            sys.settrace(None)
            raise KeyboardInterrupt

    commits.after = lambda _: sys.settrace(press) if len(commits.groups) > 1 and commits.groups[-1] == 4 else None
    log.append(Batch("task-shared", [created(), started()], 0))

    callers = append_behind_a_commit(log, commits, [Batch("task-shared", [OUTPUT], None) for _ in range(5)])

    assert {type(caller.raised) for caller in callers} <= {type(None), KeyboardInterrupt}
    assert [kind for _, _, kind in contents(log)].count("TaskOutput") == 5
    check_sound(log)


def test_ctrl_c_right_after_a_commit_leaves_no_older_state_of_its_streams(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append(new_task("t"))
    with monkeypatch.context() as patch:

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(Transaction, "_keep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            log.append(Batch("task-t", [started()], 1))

    log.append(Batch("task-t", [OUTPUT], Owned(1)))

    assert contents(log) == [("task-t", 1, "TaskCreated"), ("task-t", 2, "TaskStarted"), ("task-t", 3, "TaskOutput")]
    check_sound(log)


def test_ctrl_c_while_waiting_for_another_process_concerns_only_who_it_hit(
    file_log: EventLog, commits: Commits
) -> None:
    def interrupted(*_: object) -> bool:
        patched.undo()
        raise KeyboardInterrupt

    patched = pytest.MonkeyPatch()
    commits.after = lambda number: (
        patched.setattr(WriterLock, "acquire", interrupted) if commits.groups == [1] else None
    )

    callers = append_behind_a_commit(file_log, commits, [new_task(str(number)) for number in range(5)])

    check_only_one_was_interrupted(file_log, callers, is_written=False)


def test_ctrl_c_while_each_append_is_tried_alone_concerns_only_who_it_hit(log: EventLog, commits: Commits) -> None:
    def fail_then_interrupt(number: int) -> None:
        if number == 2:
            raise sqlite3.OperationalError("disk I/O error")
        if number == 3:
            raise KeyboardInterrupt

    commits.before = fail_then_interrupt

    callers = append_behind_a_commit(log, commits, [new_task(str(number)) for number in range(5)])

    check_only_one_was_interrupted(log, callers, is_written=False)


def test_ctrl_c_of_who_only_waits_takes_its_append_back(log: EventLog, commits: Commits) -> None:
    log.append(new_task("warm-up"))
    commits.groups.clear()
    interrupted = threading.Event()
    main = threading.get_ident()

    def interrupt(number: int) -> None:
        if number == 1:
            wait_for_waiting(log, 1)
            signal.pthread_kill(main, signal.SIGINT)
            assert interrupted.wait(WAIT_S)

    commits.before = interrupt
    first = Caller(log, new_task("first"))
    wait_until(lambda: commits.groups == [1])
    with pytest.raises(KeyboardInterrupt):
        log.append(new_task("second"))
    interrupted.set()
    first.finish()

    log.append(new_task("third"))
    assert [stream for stream, _, _ in contents(log)] == ["task-warm-up", "task-first", "task-third"]
    check_sound(log)


# --- files ---------------------------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nobody_else_may_read_the_files_of_a_ledger(path: Path) -> None:
    mask = os.umask(0)
    try:
        log = EventLog.open(path)
        log.append(new_task())
        files = {file.name: mode(file) for file in path.parent.iterdir() if file.is_file()}
        log.close()
    finally:
        os.umask(mask)

    assert {"ledger.db", "ledger.db-wal", "ledger.db-lock"} <= set(files)
    assert set(files.values()) == {0o600}


def test_an_empty_file_that_others_may_read_is_made_a_ledger_that_they_may_not(path: Path) -> None:
    path.touch(mode=0o644)

    EventLog.open(path).close()

    assert mode(path) == 0o600


@pytest.mark.parametrize(("durability", "synchronous"), [("full", 2), ("normal", 1)])
def test_durability_is_sqlites_synchronous(path: Path, durability: str, synchronous: int) -> None:
    log = EventLog.open(path, durability=durability)
    assert log._connection is not None

    assert log._connection.execute("PRAGMA synchronous").fetchone() == (synchronous,)
    assert log._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    log.close()


def test_full_durability_is_the_default(file_log: EventLog) -> None:
    assert file_log.durability == "full"


def test_any_other_durability_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="durability must be 'full' or 'normal'"):
        EventLog.open(path, durability="off")

    assert not path.exists()


def test_a_path_that_is_open_with_another_durability_is_refused(file_log: EventLog) -> None:
    assert file_log.path is not None

    with pytest.raises(LedgerError, match="is open already with durability='full'"):
        EventLog.open(file_log.path, durability="normal")


def test_the_log_shows_which_ledger_it_is(log: EventLog) -> None:
    assert repr(log) == f"EventLog({str(log.path or ':memory:')!r})"


def test_no_ledger_is_begun_beside_what_an_earlier_one_had_not_yet_written(path: Path) -> None:
    log = EventLog.open(path)
    log.append(new_task("old"))
    wal = path.with_name("ledger.db-wal")
    kept = path.rename(path.with_name("kept.db"))
    before = wal.read_bytes()

    with pytest.raises(
        LedgerUnwritableError, match=r"ledger\.db-wal, with what was last recorded in one, is still there"
    ):
        EventLog.open(path)

    assert not path.exists()
    assert wal.read_bytes() == before
    kept.rename(path)
    log.append(new_task("new"))
    assert [stream for stream, _, _ in contents(log)] == ["task-old", "task-new"]
    log.close()


def test_a_path_that_is_open_is_opened_anew_once_its_file_was_deleted(path: Path) -> None:
    with closing(EventLog.open(path)) as before:
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()
        with closing(EventLog.open(path)) as after:
            assert after is not before
            assert after.ledger != before.ledger


def test_rows_are_not_replaced_where_the_ledger_is_held_by_a_stranger(path: Path) -> None:
    log = EventLog.open(path, busy_timeout=0.05)
    with closing(log), closing(sqlite3.connect(path, isolation_level=None)) as stranger:
        log.append(new_task())
        stranger.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerUnwritableError, match="can't be written: database is locked; nothing was written"):
            rebuild(log)
        stranger.execute("ROLLBACK")
        check_sound(log)


def test_rows_whose_refill_fails_stay_as_they_were(log: EventLog) -> None:
    log.append(new_task())

    def refill(connection: sqlite3.Connection) -> int:
        assert connection.execute("SELECT count(*) FROM tasks").fetchone() == (0,)
        raise RuntimeError("no rows today")

    with pytest.raises(RuntimeError, match="no rows today"):
        log.replace_rows(["tasks"], refill)
    assert log.readers.ids("tasks") == ["t"]
    log.append(new_task("u"))
    check_sound(log)


def test_rows_whose_refill_fills_the_disk_stay_as_they_were(log: EventLog) -> None:
    log.append(new_task())
    connection = log._connection
    assert connection is not None
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 2}")

    def refill(connection: sqlite3.Connection) -> int:
        connection.execute("CREATE TABLE big (content)")
        with pytest.raises(sqlite3.OperationalError, match="full") as full:
            connection.execute("INSERT INTO big VALUES (zeroblob(1000000))")
        assert not connection.in_transaction, "SQLite has rolled back by itself"
        raise full.value

    with pytest.raises(LedgerUnwritableError, match="full; nothing was written"):
        log.replace_rows(["tasks"], refill)

    assert log.readers.ids("tasks") == ["t"]
    connection.execute("PRAGMA max_page_count = 1000000")
    log.append(new_task("u"))
    check_sound(log)


def test_rows_are_not_replaced_in_a_file_that_has_lost_its_name(path: Path) -> None:
    with closing(EventLog.open(path)) as log:
        log.append(new_task())
        kept = path.rename(path.with_name("kept.db"))
        with pytest.raises(LedgerUnwritableError, match="was deleted or replaced while it was in use"):
            rebuild(log)
        kept.rename(path)
        assert rebuild(log) == len(list(log.readers.events()))


def test_streams_go_on_where_more_were_written_than_are_kept_in_memory(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "FOLDS_KEPT_MAX", 1)
    log.append(new_task("t"))
    log.append(new_task("u"))
    log.append(Batch("task-t", [started()], 1))
    assert [entry[:2] for entry in contents(log)] == [("task-t", 1), ("task-u", 1), ("task-t", 2)]
    check_sound(log)


def test_a_ledger_whose_first_event_is_another_is_not_opened(path: Path) -> None:
    EventLog.open(path).close()
    with closing(sqlite3.connect(path)) as stranger, stranger:
        stranger.execute("DROP TRIGGER events_are_never_changed")
        stranger.execute("UPDATE events SET type = 'TaskDeleted' WHERE position = 1")
    with pytest.raises(DamagedLedgerError, match="event 1 "):
        EventLog.open(path)
    with pytest.raises(DamagedLedgerError, match="event 1 "):
        Readers.open(path).ledger()


def test_a_ledger_whose_first_event_is_gone_is_not_opened(path: Path) -> None:
    with closing(EventLog.open(path)) as log:
        log.append(new_task())
    with closing(sqlite3.connect(path)) as stranger, stranger:
        stranger.execute("DROP TRIGGER events_are_never_removed")
        stranger.execute("DELETE FROM events WHERE position = 1")
    with pytest.raises(DamagedLedgerError, match="event 1 is not a LedgerCreated; nothing was written"):
        EventLog.open(path)
    with closing(Readers.open(path)) as readers:
        with pytest.raises(DamagedLedgerError, match="event 1 is not a LedgerCreated"):
            readers.ledger()
        assert [event.position for event in readers.events()] == [2, 3]


@pytest.mark.parametrize("kind", ["task", "graph", "runner"])
def test_a_batch_without_facts_for_a_stream_that_does_not_exist_makes_none(log: EventLog, kind: str) -> None:
    (appended,) = log.append(Batch(f"{kind}-nobody", [], 0))
    assert (appended.records, appended.state) == ([], None)
    assert contents(log) == []
    check_sound(log)


def test_a_ledger_that_is_locked_when_it_is_opened_is_not_opened(path: Path) -> None:
    EventLog.open(path).close()
    other = WriterLock(lock_path(path))
    assert other.acquire(WAIT_S)
    try:
        with pytest.raises(LedgerUnwritableError, match=r"was locked by another process for 0\.05 seconds"):
            EventLog.open(path, busy_timeout=0.05)
    finally:
        other.release()
        other.close()


def test_a_ledger_that_a_stranger_holds_is_waited_for_no_longer_than_was_said(path: Path) -> None:
    log = EventLog.open(path, busy_timeout=0.05)
    stranger = WriterLock(path.with_name("ledger.db-lock"))
    assert stranger.acquire(0)

    with pytest.raises(LedgerUnwritableError, match=r"was locked by another process for 0\.05 seconds"):
        log.append(new_task())

    stranger.close()
    log.append(new_task())
    assert contents(log) == [("task-t", 1, "TaskCreated")]
    log.close()


def test_an_append_goes_on_as_soon_as_a_stranger_lets_go(path: Path) -> None:
    log = EventLog.open(path)
    stranger = WriterLock(path.with_name("ledger.db-lock"))
    assert stranger.acquire(0)
    caller = Caller(log, new_task())

    stranger.close()

    caller.finish()
    assert caller.raised is None
    log.close()


def test_a_ledger_in_memory_that_nobody_holds_any_more_is_closed() -> None:
    log = EventLog.open(None)
    log.append(new_task())
    connection = log._connection
    assert connection is not None
    assert log._describer is not None
    log._describer.join(WAIT_S)

    del log
    gc.collect()

    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


# --- secrets -------------------------------------------------------------------------------------------------------

SECRET = "tr0ub4dor-and-3-correct-horses"


def test_the_value_of_a_secret_variable_is_in_no_byte_of_the_files(path: Path) -> None:
    log = EventLog.open(path)
    env = {"PLAIN": "seen-in-the-ledger", "API_TOKEN": SECRET, "password": SECRET}
    imported = f.TaskImported(snapshot(log.append(new_task("x"))[0].state) | {"env": env})

    log.append(Batch("task-t", [created(env=env), started(env=env)], 0), Batch("task-i", [imported], 0))

    files = [file for file in path.parent.iterdir() if file.is_file()]
    written = b"".join(file.read_bytes() for file in files)
    assert b"seen-in-the-ledger" in written
    assert SECRET.encode() not in written
    assert SECRET.encode("utf-16-le") not in written
    log.close()
    assert SECRET.encode() not in path.read_bytes()


def test_equal_values_have_equal_digests_in_one_ledger_and_others_in_another(tmp_path: Path) -> None:
    digests = []
    for name in ("one.db", "other.db"):
        log = EventLog.open(tmp_path / name)
        log.append(new_task("a", env={"TOKEN": SECRET}), new_task("b", env={"KEY": SECRET, "TOKEN": "another"}))
        a, b = log.readers.task("a"), log.readers.task("b")
        assert a is not None
        assert b is not None
        assert a.env_digests is not None
        assert b.env_digests is not None
        digests.append((a.env_digests["TOKEN"], b.env_digests["KEY"], b.env_digests["TOKEN"]))
        log.close()

    (one_a, one_b, one_else), (other_a, other_b, _) = digests
    assert one_a == one_b
    assert other_a == other_b
    assert len({one_a, other_a, one_else}) == 3


def test_the_state_that_an_append_returns_holds_digests_too(log: EventLog) -> None:
    (appended,) = log.append(new_task(env={"A": "1", "TOKEN": SECRET}))

    assert SECRET not in repr(appended)
    assert appended.state == log.readers.task("t")


def test_a_digest_is_no_plain_hash_of_the_value(log: EventLog) -> None:
    (appended,) = log.append(new_task(env={"TOKEN": SECRET}))

    assert hashlib.sha256(SECRET.encode()).hexdigest()[:16] not in appended.state.env_digests["TOKEN"]


# --- fork ----------------------------------------------------------------------------------------------------------


def run_forking(folder: Path, *lines: str) -> str:
    """Return what a program prints that opens `log` and forks; `leave(code)` ends a child."""
    program = """
        import os, sys, warnings
        from datetime import datetime, UTC
        from pathlib import Path
        warnings.simplefilter("ignore")
        from ttasks.events import facts as f
        from ttasks.events.status import OnInterrupted, TaskType
        from ttasks.log.event_log import EventLog
        from ttasks.log.transaction import Batch
        from ttasks.log.verify import verify

        def new(name):
            at = datetime.now(UTC)
            fact = f.TaskCreated(name, name, TaskType.BASH, "", "", at, OnInterrupted.RERUN)
            return Batch(f"task-{name}", [fact], 0)

        def wait_for(child):
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program) + "\n".join(lines)],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_any_thread_of_a_child_reads_texts_of_a_ledger_in_memory_that_was_closed(outside_git: Path) -> None:
    said = run_forking(
        outside_git,
        "import threading",
        "log = EventLog.open(None)",
        "log.append(new('a'))",
        "readers = log.text_readers",
        "log.close()",
        "child = os.fork()",
        "if not child:",
        "    read = threading.Thread(target=lambda: print(len(list(readers.events())), flush=True), daemon=True)",
        "    read.start()",
        "    read.join(20)",
        "    os._exit(read.is_alive())",
        "print('ended with', wait_for(child))",
    )
    assert said == "3\nended with 0\n"


@pytest.mark.parametrize("leave", ["os._exit(0)", "sys.exit(0)"])
def test_after_a_fork_both_processes_append_and_each_is_a_runner(outside_git: Path, leave: str) -> None:
    run_forking(
        outside_git,
        "log = EventLog.open(Path('ledger.db'))",
        "log.append(new('before'))",
        "list(log.readers.events())",
        "child = os.fork()",
        "if child == 0:",
        "    log.append(new('child'))",
        "    assert log.readers.task('before').title == 'before'",
        f"    {leave}",
        "log.append(new('parent'))",
        "assert wait_for(child) == 0",
        "log.append(new('after'))",
        "assert verify(log.readers).problems == []",
        "log.close()",
    )

    readers = Readers.open(outside_git / "ledger.db")
    runner_of = {event.stream: event.runner for event in readers.events(type="TaskCreated")}
    assert set(runner_of) == {"task-before", "task-child", "task-parent", "task-after"}
    assert runner_of["task-before"] == runner_of["task-parent"] == runner_of["task-after"] != runner_of["task-child"]
    pids = {event.fact.pid for event in readers.events(type="RunnerStarted")}  # type: ignore[union-attr]
    assert len(pids) == 2
    assert verify(readers).problems == []


def test_a_child_forked_while_another_thread_appends_can_append(outside_git: Path) -> None:
    run_forking(
        outside_git,
        "import threading",
        "log = EventLog.open(Path('ledger.db'), busy_timeout=3)",
        "stop = threading.Event()",
        "def work():",
        "    number = 0",
        "    while not stop.is_set():",
        "        log.append(new(f'parent-{number}'))",
        "        number += 1",
        "thread = threading.Thread(target=work)",
        "thread.start()",
        "for number in range(5):",
        "    child = os.fork()",
        "    if child == 0:",
        "        log.append(new(f'child-{number}'))",
        "        os._exit(0)",
        "    assert wait_for(child) == 0",
        "stop.set()",
        "thread.join()",
        "assert verify(log.readers).problems == []",
        "log.close()",
    )

    children = [e.stream for e in Readers.open(outside_git / "ledger.db").events() if e.stream.startswith("task-child")]
    assert children == [f"task-child-{number}" for number in range(5)]


def test_what_a_child_appends_after_its_parent_closed_the_ledger_is_there(outside_git: Path) -> None:
    run_forking(
        outside_git,
        "log = EventLog.open(Path('ledger.db'))",
        "log.append(new('before'))",
        "(heard, say), (wait, go) = os.pipe(), os.pipe()",
        "child = os.fork()",
        "if child == 0:",
        "    log.append(new('child-1'))",
        "    os.write(say, b'1')",
        "    os.read(wait, 1)",
        "    log.append(new('child-2'))",
        "    os._exit(0)",
        "os.read(heard, 1)",
        "log.close()",
        "os.write(go, b'1')",
        "assert wait_for(child) == 0",
    )

    readers = Readers.open(outside_git / "ledger.db")
    assert [event.stream for event in readers.events(type="TaskCreated")] == [
        "task-before",
        "task-child-1",
        "task-child-2",
    ]


def test_a_ledger_in_memory_can_not_be_used_in_a_forked_child(outside_git: Path) -> None:
    said = run_forking(
        outside_git,
        "log = EventLog.open(None)",
        "log.append(new('before'))",
        "child = os.fork()",
        "if child == 0:",
        "    for use in (lambda: log.append(new('child')), lambda: list(log.readers.events())):",
        "        try:",
        "            use()",
        "        except RuntimeError as error:",
        "            print(error, flush=True)",
        "    os._exit(0)",
        "assert wait_for(child) == 0",
        "log.append(new('after'))",
        "assert len(log.readers.tasks()) == 2",
    )

    assert said.count("this ledger was in memory, and is gone") == 2


def test_a_child_that_has_not_used_the_ledger_can_close_it(outside_git: Path) -> None:
    run_forking(
        outside_git,
        "log = EventLog.open(Path('ledger.db'))",
        "log.append(new('before'))",
        "child = os.fork()",
        "if child == 0:",
        "    log.close()",
        "    os._exit(0)",
        "assert wait_for(child) == 0",
        "log.append(new('after'))",
        "assert verify(log.readers).problems == []",
        "log.close()",
    )

    names = [event.stream for event in Readers.open(outside_git / "ledger.db").events(type="TaskCreated")]
    assert names == ["task-before", "task-after"]


def test_a_child_does_not_write_into_another_ledger_that_took_the_place_of_its_parents(outside_git: Path) -> None:
    said = run_forking(
        outside_git,
        "from ttasks.errors import LedgerUnwritableError",
        "log = EventLog.open(Path('ledger.db'))",
        "log.append(new('before'))",
        "EventLog.open(Path('other.db')).close()",
        "wait, go = os.pipe()",
        "child = os.fork()",
        "if child == 0:",
        "    os.read(wait, 1)",
        "    for name in ('first', 'again'):",
        "        try:",
        "            log.append(new(name))",
        "        except LedgerUnwritableError as error:",
        "            print(error, flush=True)",
        "    os._exit(0)",
        "log.close()",
        "os.replace('other.db', 'ledger.db')",
        "os.write(go, b'1')",
        "assert wait_for(child) == 0",
    )

    assert said.count("ledger.db is not the ledger it was: it was replaced. Nothing was written") == 2
    assert [event.type for event in Readers.open(outside_git / "ledger.db").events()] == ["LedgerCreated"]


def test_a_fork_does_not_wait_for_as_long_as_an_append_waits_for_a_stranger(outside_git: Path) -> None:
    run_forking(
        outside_git,
        "import threading, time",
        "from ttasks.log import event_log",
        "from ttasks.log.lock import WriterLock",
        "event_log.FORK_WAIT_S = 0.05",
        "log = EventLog.open(Path('ledger.db'))",
        "log.append(new('before'))",
        "stranger = WriterLock(Path('ledger.db-lock'))",
        "assert stranger.acquire(0)",
        "thread = threading.Thread(target=lambda: log.append(new('parent')))",
        "thread.start()",
        "while log._connection_lock.acquire(blocking=False):",
        "    log._connection_lock.release()",
        "    time.sleep(0.001)",
        "child = os.fork()",
        "stranger.close()  # in both: a lock is held until nobody has it open",
        "if child == 0:",
        "    log.append(new('child'))",
        "    os._exit(0)",
        "thread.join()",
        "assert wait_for(child) == 0",
        "log.append(new('after'))",
        "assert verify(log.readers).problems == []",
        "log.close()",
    )

    names = {event.stream for event in Readers.open(outside_git / "ledger.db").events(type="TaskCreated")}
    assert names == {"task-before", "task-parent", "task-child", "task-after"}


def test_a_child_that_was_forked_inside_a_question_leaves_its_parents_connection_alone(outside_git: Path) -> None:
    run_forking(
        outside_git,
        "log = EventLog.open(Path('ledger.db'))",
        "log.append(new('before'))",
        "lent = []",
        "def question(connection):",
        "    lent.append(connection)",
        "    return os.fork()",
        "child = log.readers.ask(question)",
        "if child == 0:",
        "    assert log.readers._idle == []",
        "    lent[0].execute('SELECT 1')  # it is open: closing it here would let go of the parent's locks",
        "    assert log.readers.task('before').title == 'before'",
        "    os._exit(0)",
        "assert wait_for(child) == 0",
        "assert [connection for connection, _ in log.readers._idle] == lent",
        "assert log.readers.task('before').title == 'before'",
        "log.close()",
    )
