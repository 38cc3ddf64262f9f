"""No byte of a ledger, no result and no event holds what is to be kept out of it; and it still runs."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ttasks import (
    InMemoryStore,
    LedgerError,
    RedactionError,
    RetryPolicy,
    SealedTaskError,
    SQLiteStore,
    Task,
    TaskCancelled,
    TaskContext,
    TaskEvent,
    TaskEventType,
    TaskExecutionError,
    TaskExecutor,
    TaskGraph,
    TaskStatus,
    TaskTimeoutError,
    TaskType,
    WithheldError,
)
from ttasks.events import agent_facts as a
from ttasks.events.facts import TaskFailed, TaskOutput, TaskStarted
from ttasks.handlers.shell import bash_handler
from ttasks.log.transaction import Batch
from ttasks.log.verify import rebuild, verify
from ttasks.stores.ledger import LedgerStore

SECRET = "correct-horse-battery-staple"
PIN = "pin=4711"
REDACT = ["DEPLOY_PASS", r"re:pin=\d+"]
PATIENCE_S = 20


@pytest.fixture(autouse=True)
def _environment(outside_git: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY_PASS", SECRET)
    monkeypatch.delenv("TTASKS_REDACT", raising=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "ledgers"
    folder.mkdir()
    return folder / "ledger.db"


def bytes_of(path: Path) -> bytes:
    """Return all bytes of all files beside a ledger, its WAL among them."""
    return b"\n".join(file.read_bytes() for file in sorted(path.parent.iterdir()))


def assert_withheld(path: Path, *secrets: str) -> None:
    held = bytes_of(path)
    for secret in secrets:
        assert secret.encode() not in held
        assert secret.encode("utf-16-le") not in held


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    """A ledger in a file, of which no byte may hold the secrets; open or closed."""
    with SQLiteStore(path, redact=REDACT) as store:
        yield store
        assert_withheld(path, SECRET, PIN)
        assert path.with_name("ledger.db-wal").stat().st_size > 0
        assert verify(store._readers).problems == []
        assert rebuild(store._writable()) == verify(store._readers).events
        assert verify(store._readers).problems == []
    assert_withheld(path, SECRET, PIN)


@pytest.fixture(params=[SQLiteStore, InMemoryStore])
def any_store(request: pytest.FixtureRequest, path: Path) -> Iterator[LedgerStore]:
    with SQLiteStore(path, redact=REDACT) if request.param is SQLiteStore else InMemoryStore(redact=REDACT) as store:
        yield store
        texts = "".join(str(event.fact) for event in store._readers.events())
        assert SECRET not in texts and PIN not in texts
        assert verify(store._readers).problems == []


def loaded(store: LedgerStore, task: Task) -> Task:
    state = store._readers.task(task.id)
    assert state is not None
    return store._load_task(state)


def heard_by(executor: TaskExecutor) -> list[TaskEvent]:
    heard: list[TaskEvent] = []
    executor.events.subscribe(heard.append)
    return heard


def texts_in(events: list[TaskEvent]) -> str:
    return "".join(f"{event.error} {event.progress_message} {event.output_chunk} {event.record}" for event in events)


def count_events(store: LedgerStore) -> int:
    return sum(1 for _ in store._readers.events())


# --- every kind of run -----------------------------------------------------------------------------------------------


def _returns(context: TaskContext) -> str:
    context.emit_progress(50, f"half of {SECRET} and {PIN}")
    return f"a\n{SECRET} {PIN}\nb"


def _completes(_: TaskContext) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess(["x"], 0, f"out {SECRET}\n", f"err {PIN}\n")


def _raises(_: TaskContext) -> None:
    raise RuntimeError(f"no {SECRET}, {PIN}")


def _fails(_: TaskContext) -> None:
    raise TaskExecutionError(f"err {PIN}", subprocess.CompletedProcess(["x"], 3, f"out {SECRET}", f"err {PIN}"))


def _cancels(_: TaskContext) -> None:
    raise TaskCancelled(f"enough of {SECRET} {PIN}")


@pytest.mark.parametrize("handler", [_returns, _completes, _raises, _fails, _cancels])
@pytest.mark.parametrize("policy", [None, RetryPolicy(2)])
def test_what_a_handler_gives_back_is_redacted_everywhere(
    store: SQLiteStore, handler: Callable[[TaskContext], Any], policy: RetryPolicy | None
) -> None:
    executor = TaskExecutor.empty(store)
    executor.register(TaskType.BASH, handler)
    heard = heard_by(executor)
    task = Task.bash("true", title="t")
    with contextlib.suppress(RuntimeError, TaskCancelled):
        executor.execute(task, retry_policy=policy)
    result, again = task.result, loaded(store, task).result
    assert result is not None and again is not None
    assert (result.output, result.error) == (again.output, again.error)
    assert "***" in f"{result.output}{result.error}"
    for text in (texts_in(heard), result.output, str(result.error), str(task.error)):
        assert SECRET not in text and PIN not in text


@pytest.mark.parametrize(
    "script",
    [
        'echo "$DEPLOY_PASS"; echo "pin=4711 $DEPLOY_PASS" >&2',
        'echo "$DEPLOY_PASS"; echo "$DEPLOY_PASS" >&2; exit 3',
        'printf %s "$DEPLOY_PASS"',
        'for i in {1..3000}; do echo "$i $DEPLOY_PASS"; echo "pin=4711 $i" >&2; done; exit 1',
        'head -c 65520 /dev/zero | tr "\\0" x; echo "$DEPLOY_PASS"; printf "pin="; echo 4711',
        'head -c 200000 /dev/zero | tr "\\0" x; printf %s "$DEPLOY_PASS"; head -c 200000 /dev/zero | tr "\\0" y',
        'echo "${DEPLOY_PASS}${DEPLOY_PASS}${DEPLOY_PASS:0:20}"',
    ],
)
def test_what_a_script_prints_is_redacted_everywhere(store: SQLiteStore, script: str) -> None:
    executor = TaskExecutor(store)
    heard = heard_by(executor)
    task = Task.bash(script)
    with contextlib.suppress(TaskExecutionError):
        executor.execute(task)
    result, again = task.result, loaded(store, task).result
    assert result is not None and again is not None
    assert (result.output, result.error) == (again.output, again.error)
    assert (task.error, result.returncode) == (loaded(store, task).error, again.returncode)
    printed = "".join(str(event.output_chunk) for event in heard if event.output_stream == "stdout")
    assert printed == result.output
    assert "***" in result.output
    raw = result.raw
    for text in (texts_in(heard), result.output, str(result.error), raw.stdout, raw.stderr):
        assert SECRET not in text and PIN not in text


def test_what_was_printed_before_a_time_out_is_redacted(store: SQLiteStore) -> None:
    task = Task.bash('echo "$DEPLOY_PASS"; printf %s "${DEPLOY_PASS:0:20}"; exec sleep 60', timeout=0.5)
    with pytest.raises(TaskTimeoutError) as raised:
        TaskExecutor(store).execute(task)
    assert task.result is not None
    assert task.result.output == raised.value.completed.stdout == "***\n***"
    assert loaded(store, task).result.output == "***\n***"


def test_what_was_printed_before_a_cancel_is_redacted(store: SQLiteStore) -> None:
    executor = TaskExecutor(store)
    task = Task.bash('echo "$DEPLOY_PASS"; exec sleep 60')
    executor.events.subscribe(lambda event: executor.cancel(task) if event.output_chunk else None)
    with pytest.raises(TaskCancelled):
        executor.execute(task)
    assert loaded(store, task).result.output == "***\n"


def test_a_process_that_keeps_the_output_open_loses_no_line(store: SQLiteStore) -> None:
    task = Task.bash('setsid sleep 30 & echo $!; printf "not ended %s" "$DEPLOY_PASS"; exec sleep 60', timeout=0.5)
    with pytest.raises(TaskTimeoutError) as raised:
        TaskExecutor(store).execute(task)
    pid, rest = raised.value.completed.stdout.split("\n")
    os.kill(int(pid), signal.SIGKILL)
    assert rest == "not ended ***"
    assert task.result.output == loaded(store, task).result.output == f"{pid}\nnot ended ***"


@pytest.mark.parametrize("redact", [[], REDACT])
def test_a_handler_may_run_several_scripts_one_after_the_other(path: Path, redact: list[str]) -> None:
    def twice(context: TaskContext) -> Any:
        bash_handler(context)
        return bash_handler(context)

    with SQLiteStore(path, redact=redact) as store:
        executor = TaskExecutor.empty(store)
        executor.register(TaskType.BASH, twice)
        task = Task.bash('echo "pin=4711"; printf end')
        executor.execute(task)
        shown = "***" if redact else "pin=4711"
        assert store._readers.printed(task.id, 1)["stdout"] == f"{shown}\nend{shown}\nend"


def test_what_an_agent_does_is_redacted_everywhere(store: SQLiteStore) -> None:
    said = f"{'x' * 5000} {SECRET} {PIN}"
    deep = {"command": f"login {SECRET}", SECRET: [{"deep": [f"{PIN}!", {f"a {PIN}": {"b": SECRET}}]}]}
    task = Task.agent("tidy up")
    store.tasks.save(task)
    at, log = task.created_at, store._writable()

    log.append(
        Batch(
            f"task-{task.id}",
            [
                TaskStarted(1, "tests.agent", "tidy up", at, 0),
                a.AgentSessionOpened(
                    1, at, "s", False, account=SECRET, permissions=(f"allow {PIN}",), cwd=f"/{SECRET}"
                ),
                a.AgentPrompted(1, at, said),
                a.AgentAnswered(1, at, said, False),
                a.PermissionRequested(1, at, "r", "shell", f"login {SECRET}", said, "c"),
                a.PermissionDecided(1, at, "r", "approved", f"allow {SECRET}", said),
                a.ToolCallStarted(1, at, "c", f"tool {PIN}", deep),
                a.ToolCallEnded(1, at, "c", "failed", 1, said, said, (a.FileEdit(f"/{SECRET}/x", "edit"),)),
                a.ToolCallStarted(1, at, "open", "edit", deep),
                a.AgentErred(1, at, "query", said, False),
                TaskFailed(1, at, at, 1.0, said),
            ],
            None,
        )
    )

    call, left = store._readers.tool_calls(task.id)
    assert call.arguments == left.arguments
    assert call.arguments == {"command": "login ***", "***": [{"deep": ["***!", {"a ***": {"b": "***"}}]}]}
    assert (call.error, call.error_length) == ("x" * 4088 + " *** ***", 5008)
    assert call.files == (a.FileEdit("/***/x", "edit"),)
    (request,) = store._readers.permissions(task.id)
    assert (request.subject, request.decided_by) == ("login ***", "allow ***")


def test_the_tail_of_a_long_error_does_not_begin_inside_of_a_secret(store: SQLiteStore, path: Path) -> None:
    task = Task.bash('printf %s "$DEPLOY_PASS" >&2; head -c 4080 /dev/zero | tr "\\0" x >&2; exit 1')
    with pytest.raises(TaskExecutionError):
        TaskExecutor(store).execute(task)
    assert loaded(store, task).error == "***" + "x" * 4080
    assert_withheld(path, SECRET[-12:])


def test_everything_people_write_about_tasks_and_graphs_is_redacted(store: SQLiteStore) -> None:
    first = Task(f"a {SECRET}", "true", TaskType.BASH, PIN, error=f"e {SECRET}", name=f"n {PIN}")
    second = Task.bash(f"echo {SECRET} >&2; exit 3", title="b", env={f"A{SECRET}": "1", "B": f"x {PIN}"})
    graph = TaskGraph(title=f"graph {SECRET}")
    graph.add(first)
    graph.add(second, after=[first])
    store.graphs.save(graph)
    graph.title = f"again {PIN}"
    first.title, first.description, first.error = f"c {PIN}", SECRET, PIN
    graph.run(TaskExecutor(store))
    assert graph.title == f"again {PIN}"
    again = store.graphs[graph.id]
    assert again.title == "again ***"
    assert [(task.title, task.description) for task in again] == [("c ***", "***"), ("b", "")]
    assert str(again.errors[second.id]).strip() == "***"
    first_again, second_again = again
    assert (first_again.name, second_again.payload) == ("n ***", "echo *** >&2; exit 3")
    assert store.tasks[first.id].error is None


def test_the_runner_s_command_line_and_folder_are_redacted(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / SECRET
    folder.mkdir()
    program = (
        "import sys\nfrom ttasks import *\n"
        "with SQLiteStore(sys.argv[1], redact=['DEPLOY_PASS']) as store:\n    store.tasks.save(Task.bash('true'))\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path), f"--password={SECRET}"], cwd=folder, check=True)
    assert_withheld(path, SECRET)
    with SQLiteStore(path, read_only=True) as store:
        (started,) = store._readers.events(type="RunnerStarted")
        assert started.fact.command[-1] == "--password=***"
        assert started.fact.cwd == str(tmp_path / "***")


# --- timing ----------------------------------------------------------------------------------------------------------


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_line_is_recorded_when_it_is_complete_and_no_earlier(store: SQLiteStore, path: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    task = Task.bash(f'echo begun; printf %s "${{DEPLOY_PASS:0:7}}"; cat {gate}; printf "%s\\n" "${{DEPLOY_PASS:7}}"')
    future = TaskExecutor(store).submit(task)
    wait_for(lambda: store._readers.printed(task.id, 1)["stdout"] != "")
    assert store._readers.printed(task.id, 1)["stdout"] == "begun\n"
    assert_withheld(path, SECRET[:7])
    gate.write_text("")
    assert future.result(PATIENCE_S).output == "begun\n***\n"
    assert store._readers.printed(task.id, 1)["stdout"] == "begun\n***\n"


# --- handles ---------------------------------------------------------------------------------------------------------


def test_a_live_handle_shows_and_runs_what_it_was_given(any_store: LedgerStore) -> None:
    task = Task.bash(f"test '{SECRET}' = \"$DEPLOY_PASS\"", title=f"t {PIN}", description=SECRET, cwd="/tmp")
    any_store.tasks.save(task)
    shown = (task.title, task.name, task.description, task.payload)
    assert shown == (f"t {PIN}", f"t {PIN}", SECRET, f"test '{SECRET}' = \"$DEPLOY_PASS\"")
    assert TaskExecutor(any_store).execute(task).returncode == 0
    assert (task.title, task.name, task.description, task.payload) == shown
    again = loaded(any_store, task)
    assert (again.title, again.name, again.description, again.payload) == (
        "t ***", "t ***", "***", "test '***' = \"$DEPLOY_PASS\"",
    )  # fmt: skip


def test_saving_again_what_was_redacted_records_nothing(any_store: LedgerStore) -> None:
    task = Task.bash(f"echo {SECRET}", title=PIN)
    any_store.tasks.save(task)
    before = count_events(any_store)
    any_store.tasks.save(task)
    task.payload, task.title = task.payload, PIN
    any_store.tasks.save(task)
    any_store.tasks.save(loaded(any_store, task))
    assert count_events(any_store) == before
    task.title = f"other {PIN}"
    any_store.tasks.save(task)
    assert (task.title, loaded(any_store, task).title) == (f"other {PIN}", "other ***")
    assert count_events(any_store) == before + 1


def test_a_revision_that_is_redacted_to_the_same_text_stays_on_the_handle(any_store: LedgerStore) -> None:
    task = Task.bash("true", title="pin=1")
    any_store.tasks.save(task)
    task.title = "pin=2"
    any_store.tasks.save(task)
    assert (task.title, loaded(any_store, task).title) == ("pin=2", "***")


def test_what_somebody_else_wrote_since_is_shown_as_it_is(store: SQLiteStore) -> None:
    task = Task.bash("true", title=PIN)
    executor = TaskExecutor.empty(store)

    def revise(context: TaskContext) -> None:
        other = store.tasks[context.id]
        other.title = "***"  # as a person may write it
        store.tasks.save(other)
        other.title = "other"
        store.tasks.save(other)
        other.title = "***"
        store.tasks.save(other)

    executor.register(TaskType.BASH, revise)
    executor.execute(task)
    assert (task.title, loaded(store, task).title) == ("***", "***")


def test_the_handler_gets_the_payload_and_the_log_holds_it_redacted(any_store: LedgerStore) -> None:
    given: list[str] = []
    executor = TaskExecutor.empty(any_store)
    executor.register(TaskType.BASH, lambda context: given.append(context.payload))
    task = Task.bash(f"use {SECRET}")
    executor.execute(task)
    (started,) = any_store._readers.events(type="TaskStarted")
    assert given == [f"use {SECRET}"]
    assert isinstance(started.fact, TaskStarted)
    assert (started.fact.payload, started.fact.redacted) == ("use ***", ("payload",))


def test_every_attempt_gets_the_payload(any_store: LedgerStore) -> None:
    given: list[str] = []

    def fail(context: TaskContext) -> None:
        given.append(context.payload)
        raise RuntimeError

    executor = TaskExecutor.empty(any_store)
    executor.register(TaskType.BASH, fail)
    with pytest.raises(RuntimeError):
        executor.execute(Task.bash(f"use {SECRET}"), retry_policy=RetryPolicy(3))
    assert given == [f"use {SECRET}"] * 3


def test_a_handle_that_is_saved_into_another_ledger_takes_what_it_was_given_there(any_store: LedgerStore) -> None:
    task = Task.bash(f"echo {SECRET}", env={"API_TOKEN": "another-secret"})
    any_store.tasks.save(task)
    with InMemoryStore() as other:
        other.tasks.save(task)
        assert loaded(other, task).payload == f"echo {SECRET}"
        assert TaskExecutor(other).execute(task).output == f"{SECRET}\n"


def test_what_is_saved_from_elsewhere_is_redacted_with_what_it_printed(store: SQLiteStore) -> None:
    task = Task.bash(f"echo {SECRET}; echo {PIN} >&2; exit 1", title=SECRET)
    with pytest.raises(TaskExecutionError):
        TaskExecutor().execute(task)
    assert task.result.output == f"{SECRET}\n"
    store.tasks.save(task)
    again = store.tasks[task.id]
    assert (again.title, again.result.output, again.result.error) == ("***", "***\n", "***\n")
    assert task.payload == f"echo {SECRET}; echo {PIN} >&2; exit 1"


# --- what can't be restored ------------------------------------------------------------------------------------------


def test_a_loaded_task_whose_payload_is_withheld_is_refused_with_a_sentence(any_store: LedgerStore) -> None:
    task = Task.bash(f"echo {SECRET}", title="deploy")
    any_store.tasks.save(task)
    again, before = loaded(any_store, task), count_events(any_store)
    with TaskExecutor(any_store) as executor:
        for start in (executor.execute, executor.submit):
            with pytest.raises(WithheldError) as refused:
                start(again)
            assert refused.value.missing == ("payload",)
            assert str(refused.value) == (
                f"task 'deploy' ({task.id}) can't run as it was loaded: the ledger withholds its payload. "
                "Give that again: task.give_again(…). Nothing was run or written"
            )
    assert isinstance(refused.value, ValueError)
    assert (again.status, count_events(any_store)) == (TaskStatus.PENDING, before)


def test_a_loaded_task_whose_variables_are_withheld_is_refused(any_store: LedgerStore) -> None:
    task = Task.bash("true", env={"API_TOKEN": "s3cret-s3cret", "A": "1"})
    any_store.tasks.save(task)
    again = loaded(any_store, task)
    with pytest.raises(WithheldError, match=r"withholds its env\['API_TOKEN'\]"):
        TaskExecutor(any_store).execute(again)


def test_a_graph_with_a_task_that_lacks_something_is_refused_whole(store: SQLiteStore) -> None:
    graph = TaskGraph(title="g")
    first = graph.add(Task.bash("true"))
    deploy = graph.add(Task.bash(f": {SECRET}", title="deploy"), after=[first])
    store.graphs.save(graph)
    again, before = store.graphs[graph.id], count_events(store)
    with pytest.raises(WithheldError, match="task 'deploy'"):
        again.run(TaskExecutor(store))
    assert count_events(store) == before
    for task in again.leaves():
        task.give_again(payload=deploy.payload)
    assert again.run(TaskExecutor(store)).ok


def test_a_task_that_is_over_needs_nothing(store: SQLiteStore) -> None:
    graph = TaskGraph(title="g")
    first = graph.add(Task.bash(f": {SECRET}"))
    graph.run(TaskExecutor(store))
    again = store.graphs[graph.id]
    again.add(Task.bash("true"), after=list(again))
    assert again.run(TaskExecutor(store)).ok
    assert first.attempts == 1


def test_a_task_runs_once_what_is_withheld_is_given_again_and_nothing_is_recorded_of_that(
    any_store: LedgerStore,
) -> None:
    script = f'echo ${{#API_TOKEN}}; test {SECRET} = "$DEPLOY_PASS"'
    task = Task.bash(script, env={"API_TOKEN": "s3cret-s3cret", "A": "1"})
    any_store.tasks.save(task)
    again, before = loaded(any_store, task), count_events(any_store)
    again.give_again(payload=script, env={"API_TOKEN": "s3cret-s3cret"})
    assert (again.payload, again.env) == (script, {"API_TOKEN": "s3cret-s3cret", "A": "1"})
    any_store.tasks.save(again)
    assert count_events(any_store) == before
    assert TaskExecutor(any_store).execute(again).output == f"{len('s3cret-s3cret')}\n"
    assert again.payload == script
    types = [event.type for event in any_store._readers.events(stream=f"task-{task.id}")]
    assert types[:2] == ["TaskCreated", "TaskStarted"]


def test_whether_the_same_value_was_given_again_can_be_seen_by_its_digest(store: SQLiteStore) -> None:
    task = Task.bash("exit 1", env={"API_TOKEN": "s3cret-s3cret"})
    digests = []
    for value in ("s3cret-s3cret", "other-s3cret"):
        store.tasks.save(task)
        task = store.tasks[task.id]
        task.give_again(env={"API_TOKEN": value})
        with pytest.raises(TaskExecutionError):
            TaskExecutor(store).execute(task)
    for event in store._readers.events(stream=f"task-{task.id}"):
        if event.type in ("TaskCreated", "TaskStarted"):
            digests.append(event.fact.env_digests["API_TOKEN"])
    created, same, other = digests
    assert created == same != other


def test_what_was_given_again_stays_for_retries_also_where_other_things_are_redacted_by_then(path: Path) -> None:
    task = Task.bash(f"echo {SECRET}; exit 1")
    with SQLiteStore(path, redact=REDACT) as store:
        store.tasks.save(task)
    with SQLiteStore(path) as store:
        again = store.tasks[task.id]
        again.give_again(payload=task.payload)
        given: list[str] = []

        def fail(context: TaskContext) -> None:
            given.append(context.payload)
            raise RuntimeError

        executor = TaskExecutor.empty(store)
        executor.register(TaskType.BASH, fail)
        with pytest.raises(RuntimeError):
            executor.execute(again, retry_policy=RetryPolicy(2))
        assert given == [task.payload] * 2


def test_setting_another_payload_is_a_revision_and_lets_it_run(any_store: LedgerStore) -> None:
    task = Task.bash(f"echo {SECRET}")
    any_store.tasks.save(task)
    again = loaded(any_store, task)
    again.payload = "echo other"
    assert TaskExecutor(any_store).execute(again).output == "other\n"
    assert loaded(any_store, task).payload == "echo other"
    assert loaded(any_store, task)._view.redacted is None


@pytest.mark.parametrize(
    ("given", "refusal"),
    [
        ({"payload": "x"}, "payload of task 't' is not withheld from this handle"),
        ({"cwd": "x"}, "cwd of task 't' is not withheld"),
        ({"env": {"A": "1"}}, r"env\['A'\] of task 't' is not withheld"),
    ],
)
def test_only_what_is_withheld_can_be_given_again(store: SQLiteStore, given: dict[str, Any], refusal: str) -> None:
    task = Task.bash("true", title="t", env={"A": "1", "KEY": "s3cret-s3cret"})
    store.tasks.save(task)
    again = store.tasks[task.id]
    with pytest.raises(ValueError, match=refusal):
        again.give_again(**given)
    with pytest.raises(ValueError, match="is not withheld"):
        task.give_again(env={"KEY": "s3cret-s3cret"})  # it was never loaded


@pytest.mark.parametrize("given", [{"payload": 7}, {"cwd": b"x"}, {"env": {"KEY": 7}}, {"env": "KEY=7"}])
def test_what_is_given_again_has_to_be_of_its_type(store: SQLiteStore, given: dict[str, Any]) -> None:
    task = Task.bash(PIN, env={"KEY": "s3cret-s3cret"})
    store.tasks.save(task)
    with pytest.raises(TypeError):
        store.tasks[task.id].give_again(**given)


def test_a_task_that_has_succeeded_takes_nothing_more(store: SQLiteStore) -> None:
    task = Task.bash(f": {SECRET}")
    TaskExecutor(store).execute(task)
    with pytest.raises(SealedTaskError):
        store.tasks[task.id].give_again(payload=task.payload)


# --- a task's own variables ------------------------------------------------------------------------------------------


def run(script: str, env: dict[str, str], redact: list[str] | None = None) -> tuple[str, dict[str, str]]:
    """Return what a script prints, and what a loaded handle has of its variables."""
    with InMemoryStore(redact=redact or []) as store:
        task = Task.bash(script, env=env)
        result = TaskExecutor(store).execute(task)
        assert task.env == env
        assert store._readers.printed(task.id, 1)["stdout"] == result.output
        return result.output, loaded(store, task).env


def test_a_secret_looking_value_is_redacted_from_what_its_task_prints() -> None:
    output, env = run('echo "key $API_KEY"', {"API_KEY": "long-enough"})
    assert output == "key ***\n"
    assert env["API_KEY"].startswith("pbkdf2-sha256:")


@pytest.mark.filterwarnings("ignore:redact.0. names a variable that does not exist")
def test_a_short_one_is_not_unless_it_is_named() -> None:
    assert run('echo "key $API_KEY"', {"API_KEY": "1234567"})[0] == "key 1234567\n"
    assert run('echo "key $API_KEY"', {"API_KEY": "1234567"}, ["API_KEY"])[0] == "key ***\n"


@pytest.mark.filterwarnings("ignore:redact.0. names a variable that does not exist")
def test_an_ordinary_value_is_not_unless_its_variable_is_named() -> None:
    assert run('echo "$DSN"', {"DSN": "plain-value"}) == ("plain-value\n", {"DSN": "plain-value"})
    for name in ("DSN", "D*"):
        output, env = run('echo "$DSN"', {"DSN": "plain-value"}, [name])
        assert output == "***\n"
        assert env["DSN"].startswith("pbkdf2-sha256:")


def test_a_value_that_matches_is_recorded_as_a_digest_whole() -> None:
    output, env = run('echo "$URL"', {"URL": "db://ann:pin=4711@host"}, REDACT)
    assert output == "***\n"
    assert env["URL"].startswith("pbkdf2-sha256:")


def test_a_secret_of_a_task_is_in_nothing_that_is_recorded_of_it(path: Path) -> None:
    value = "tell-nobody-of-it"
    with SQLiteStore(path) as store:
        executor = TaskExecutor.empty(store)
        heard = heard_by(executor)

        def handler(context: TaskContext) -> None:
            context.emit_progress(message=value)
            raise RuntimeError(f"no {value}")

        executor.register(TaskType.BASH, handler)
        graph = TaskGraph()
        task = graph.add(Task.bash(f"use {value}", title=value, env={"API_KEY": value}))
        graph.run(executor)
        task.description = value
        store.tasks.save(task)
        assert store.graphs[graph.id].errors[task.id].args == ("no ***",)
        assert value not in texts_in(heard)
        assert_withheld(path, value)
    assert_withheld(path, value)


def test_without_redaction_and_secrets_nothing_is_held_back(path: Path) -> None:
    from ttasks.runtime.attempt import ONCE, Attempt
    from ttasks.runtime.bus import EventBus
    from ttasks.runtime.journal import journal_of

    with SQLiteStore(path) as store:
        for env, is_redacted in (
            (None, False),
            ({"A": "1"}, False),
            ({"KEY": "short"}, False),
            ({"KEY": "x" * 8}, True),
        ):
            task = Task.bash("true", env=env)
            attempt = Attempt(
                task, {}, print, journal=journal_of(store), bus=EventBus(), policy=ONCE, retry=0, run=None
            )
            attempt.started(None)
            assert (attempt._redaction is not None, bool(attempt._of_child()._redactors)) == (
                is_redacted,
                is_redacted,
            )


# --- inherited variables ---------------------------------------------------------------------------------------------

INHERITED = "Tr0ub4dor-and-3"


@pytest.mark.parametrize("handler", [_returns, _completes, _raises, _fails, _cancels, bash_handler])
@pytest.mark.parametrize("make", [SQLiteStore, InMemoryStore, None])
def test_an_inherited_secret_is_masked_in_what_a_task_gives_out(
    make: Any, handler: Callable[[TaskContext], Any], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPLOY_TOKEN", SECRET)
    monkeypatch.delenv("DEPLOY_PASS")  # an ordinary variable with the same value
    store = make(path) if make is SQLiteStore else make() if make is not None else None
    with store or contextlib.nullcontext():
        executor = TaskExecutor.empty(store)
        executor.register(TaskType.BASH, handler)
        heard = heard_by(executor)
        graph = TaskGraph()
        task = graph.add(Task.bash('echo "a $DEPLOY_TOKEN"; echo "b $DEPLOY_TOKEN" >&2; exit 3'))
        graph.run(executor)
        assert task.result is not None
        given_out = [task.error, task.result.output, task.result.error, texts_in(heard)]
        if handler not in (_raises, _cancels):  # what they raise is their own object
            given_out.append(str(graph.errors.get(task.id)))
        assert SECRET not in "".join(map(str, given_out))
        assert "***" in "".join(map(str, given_out))
        if store is not None:
            assert SECRET not in "".join(str(event.fact) for event in store._readers.events())
    if make is SQLiteStore:
        assert_withheld(path, SECRET)


def test_an_agent_s_conversation_is_masked_of_inherited_secrets(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY_TOKEN", INHERITED)

    def handler(context: TaskContext) -> str:
        port = context._port
        assert port is not None
        at = port.started_at
        port.report(a.AgentAnswered(port.number, at, f"it is {INHERITED}", False, "model", None))
        return f"it is {INHERITED}"

    with SQLiteStore(path) as store:
        executor = TaskExecutor.empty(store)
        executor.register(TaskType.BASH, handler)
        assert executor.execute(Task.bash("ask")).output == "it is ***"
        assert any(event.type == "AgentAnswered" for event in store.events)
    assert_withheld(path, INHERITED)


def test_what_people_wrote_is_recorded_whatever_is_inherited(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY_TOKEN", INHERITED)
    folder = path.parent / INHERITED
    folder.mkdir()
    with SQLiteStore(path) as store:
        task = Task.bash(f"echo {INHERITED}", title=INHERITED, name=INHERITED, cwd=str(folder), env={"A": INHERITED})
        graph = TaskGraph(title=INHERITED)
        graph.add(task)
        store.graphs.save(graph)
        again = store.graphs[graph.id]
        (read,) = again
        again.run(TaskExecutor(store))  # it lacks nothing
        read = store.tasks[task.id]
        texts = (read.payload, read.title, read.name, read.cwd, read.env, store.graphs[graph.id].title)
        assert texts == (f"echo {INHERITED}", INHERITED, INHERITED, str(folder), {"A": INHERITED}, INHERITED)
        assert store._readers.printed(task.id, 1)["stdout"] == "***\n"


def test_a_variable_counts_from_the_next_attempt_on_after_it_was_set(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SQLiteStore(path) as store, SQLiteStore(path) as second:
        executor = TaskExecutor(store)
        script = 'echo "$DEPLOY_TOKEN"'
        assert executor.execute(Task.bash(script)).output == "\n"
        monkeypatch.setenv("DEPLOY_TOKEN", INHERITED)
        assert executor.execute(Task.bash(script)).output == "***\n"
        with SQLiteStore(path):  # opening one more is no matter of what is inherited by now
            assert TaskExecutor(second).execute(Task.bash(script)).output == "***\n"
    assert_withheld(path, INHERITED)


def test_an_inherited_variable_may_be_said_to_be_ordinary(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY_TOKEN", INHERITED)
    with SQLiteStore(path, redact=["!DEPLOY_TOKEN"]) as store:
        assert TaskExecutor(store).execute(Task.bash('echo "$DEPLOY_TOKEN"')).output == f"{INHERITED}\n"
    monkeypatch.setenv("TTASKS_REDACT", "!DEPLOY_*")
    assert TaskExecutor().execute(Task.bash('echo "$DEPLOY_TOKEN"')).output == f"{INHERITED}\n"


# --- how it is said --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda path: SQLiteStore(path), lambda _: InMemoryStore()])
def test_the_variable_says_it_for_every_store(
    make: Callable[[Path], LedgerStore], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTASKS_REDACT", r"DEPLOY_PASS,re:pin=\d{4,}")
    with make(path) as store:
        task = Task.bash(f"echo {SECRET} {PIN}")
        assert TaskExecutor(store).execute(task).output == "*** ***\n"
        assert loaded(store, task).payload == "echo *** ***"


class OwnStore:
    """A store of somebody's own."""

    def __init__(self) -> None:
        self.tasks = self.graphs = self
        self.seen: list[Any] = []

    def save(self, handle: Any) -> None:
        self.seen.append(getattr(handle, "result", None))


@pytest.mark.parametrize("make", [lambda: None, OwnStore])
def test_the_variable_says_it_without_a_ledger_too(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTASKS_REDACT", "DEPLOY_PASS")
    store = make()
    executor = TaskExecutor(store)
    heard = heard_by(executor)
    with pytest.raises(TaskExecutionError) as raised:
        executor.execute(Task.bash('echo "$DEPLOY_PASS"; echo "no $DEPLOY_PASS" >&2; exit 1'))
    assert SECRET not in texts_in(heard)
    assert str(raised.value) == "no ***\n"
    if store is not None:
        assert [result.output for result in store.seen if result is not None] == ["***\n"]


@pytest.mark.parametrize("make", [lambda path: SQLiteStore(path), lambda _: InMemoryStore(), lambda _: TaskExecutor()])
def test_a_variable_that_can_t_be_used_is_an_error_before_anything_is_made(
    make: Callable[[Path], Any], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTASKS_REDACT", "re:(")
    with pytest.raises(RedactionError, match=r"TTASKS_REDACT: the pattern '\('"):
        make(path)
    assert list(path.parent.iterdir()) == []


def test_stores_on_one_path_share_what_is_redacted(path: Path) -> None:
    with SQLiteStore(path, redact=REDACT), SQLiteStore(path) as second, SQLiteStore(path, redact=["DEPLOY_PASS"]):
        second.tasks.save(Task.bash(SECRET))
        with pytest.raises(LedgerError, match="is open already, and not all that is to be redacted here"):
            SQLiteStore(path, redact=["re:other"])
        with SQLiteStore(path, read_only=True, redact=["re:other"]) as looking:
            assert [task.payload for task in looking.tasks.values()] == ["***"]
    with SQLiteStore(path), pytest.raises(LedgerError, match="is open already"):
        SQLiteStore(path, redact=REDACT)
    with SQLiteStore(path, redact=["re:other"]):
        assert_withheld(path, SECRET)


def test_patterns_may_be_compiled(path: Path) -> None:
    with SQLiteStore(path, redact=[re.compile("PIN=[0-9]+", re.IGNORECASE)]) as store:
        store.tasks.save(Task.bash(f"echo {PIN}"))
        assert [task.payload for task in store.tasks.values()] == ["echo ***"]
    assert_withheld(path, PIN)


def test_output_stays_in_whole_lines_in_the_log(store: SQLiteStore) -> None:
    script = 'for i in {1..20000}; do echo "line $i with some words in it to make it longer"; done'
    task = Task.bash(script)
    result = TaskExecutor(store).execute(task)
    facts = [event.fact for event in store._readers.events(type="TaskOutput")]
    chunks = [text for fact in facts if isinstance(fact, TaskOutput) for _, _, text in fact.chunks]
    assert all(chunk.endswith("\n") for chunk in chunks)
    assert (
        "".join(chunks)
        == result.output
        == "".join(f"line {number} with some words in it to make it longer\n" for number in range(1, 20001))
    )


def test_lines_of_two_streams_do_not_mix(store: SQLiteStore) -> None:
    task = Task.bash('printf a; printf b >&2; printf "c\\n"; printf "d\\n" >&2')
    result = TaskExecutor(store).execute(task)
    assert (result.output, result.error) == ("ac\n", "bd\n")


def test_many_tasks_at_once_keep_their_secrets_apart(store: SQLiteStore) -> None:
    barrier = threading.Barrier(4)

    def handler(context: TaskContext) -> str:
        barrier.wait(PATIENCE_S)
        return " ".join(f"value-of-{number}" for number in range(4))

    executor = TaskExecutor.empty(store)
    executor.register(TaskType.BASH, handler)
    futures = [executor.submit(Task.bash("x", env={"API_KEY": f"value-of-{number}"})) for number in range(4)]
    for number, future in enumerate(futures):
        others = [f"value-of-{other}" if other != number else "***" for other in range(4)]
        assert future.result(PATIENCE_S).output == " ".join(others)


def test_a_published_start_holds_the_fact_as_it_was_recorded(store: SQLiteStore) -> None:
    executor = TaskExecutor(store)
    heard = heard_by(executor)
    executor.execute(Task.bash(f": {SECRET}"))
    (started,) = [event for event in heard if event.type is TaskEventType.STARTED]
    assert started.record is not None
    assert started.record.fact.payload == ": ***"
