"""An agent is stopped: by its time, a cancel, Ctrl-C; or its CLI dies. Nothing hangs, and nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from commands import Command, Running
from copilots import Bench, gone, pid_of_shell
from doubles.scripted import Step
from processes import PATIENCE_S, in_thread, until
from ttasks import (
    CopilotAgentSession,
    CopilotError,
    PermissionRequest,
    Task,
    TaskCancelled,
    TaskEventType,
    TaskGraph,
    TaskStatus,
    TaskType,
    clock,
)
from ttasks.events.agent_facts import AgentAborted, AgentAnswered, AgentTurnEnded, PermissionDecided, ToolCallEnded
from ttasks.handlers.copilot import conversation
from ttasks.log.verify import verify

NOTICED_WITHIN_S = 2.0
"""How soon a dead CLI is noticed; the rest of a test's time is the machine's."""


def in_tool(bench: Bench, **more: Any) -> tuple[list[Step], str]:
    """Return a turn that never ends in a tool, and the file that holds the id of the tool's process."""
    shell, name = pid_of_shell(bench)
    return [{"tool": "bash", "arguments": {"command": "sleep"}, "during": [shell], **more}], name


def whys(bench: Bench, task: Task) -> list[str]:
    return [fact.why for fact in bench.facts(task, AgentAborted)]


# Time, and cancels.


def test_an_agent_whose_time_is_up_is_aborted_with_what_it_runs(bench: Bench) -> None:
    turn, name = in_tool(bench)
    bench.cli(turn)
    executor = bench.executor()
    task = Task.agent("Go", timeout=1.0)
    with pytest.raises(TimeoutError, match="Task timed out after 1 seconds"):
        executor.execute(task)
    assert (task.status, task.error) == (TaskStatus.FAILED, "Task timed out after 1 seconds")
    assert task.result is not None
    assert (task.result.termination_reason, task.result.error_code) == ("timeout", "timeout")
    assert whys(bench, task) == ["timeout"]
    assert [fact.outcome for fact in bench.facts(task, ToolCallEnded)] == ["aborted"]
    assert gone(bench.wait_for_file(name))
    assert bench.rows("SELECT error_code, reason FROM attempts") == [{"error_code": "timeout", "reason": "timeout"}]
    assert bench.is_quiet()


def test_the_time_of_a_prompt_counts_from_the_start_of_the_cli(bench: Bench) -> None:
    bench.cli(start="mute")
    task = Task.prompt("Go", timeout=0.2)
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=r"Task timed out after 0\.2 seconds"):
        bench.executor().execute(task)
    assert time.monotonic() - begun < NOTICED_WITHIN_S + 5
    assert bench.is_quiet()


@pytest.mark.parametrize("where", ["start", "create", "tool", "text"])
def test_an_agent_that_is_cancelled_ends_wherever_it_is(where: str, bench: Bench) -> None:
    turn, name = in_tool(bench)
    if where == "start":
        bench.cli(start="mute")
        reached: Callable[[], Any] = lambda: bench.asked("connect")  # noqa: E731
    elif where == "create":
        bench.cli(create={"hang": True})
        reached = lambda: bench.asked("session.create")  # noqa: E731
    elif where == "tool":
        bench.cli(turn)
        reached = (bench.folder / name).exists
    else:
        bench.cli([{"say": "One two three\nfour", "during": [{"hang": True}]}])
        reached = lambda: bench.spoken("output")  # noqa: E731
    task = Task.agent("Go")
    with bench.executor() as executor:
        future = executor.submit(task)
        until(reached)
        executor.cancel(task)
        with pytest.raises(TaskCancelled):
            future.result(PATIENCE_S)
    assert task.status is TaskStatus.CANCELLED
    assert whys(bench, task) == (["cancelled"] if where in ("tool", "text") else [])
    assert bench.is_quiet()
    if where == "text":
        (fact,) = bench.facts(task, AgentAnswered)
        assert (fact.text, fact.is_partial) == ("One two three\nfour", True)
        assert task.result is not None and task.result.output == "One two three\nfour"


def test_a_function_that_never_decides_keeps_no_agent_from_ending(bench: Bench) -> None:
    gate, asked = threading.Event(), threading.Event()

    def ask(request: PermissionRequest) -> bool:
        asked.set()
        return gate.wait(PATIENCE_S)

    bench.cli([{"tool": "bash", "arguments": {"command": "ls"}}])
    task = Task.agent("Go")
    with bench.executor(permissions=ask) as executor:
        future = executor.submit(task)
        assert asked.wait(PATIENCE_S)
        executor.cancel(task)
        with pytest.raises(TaskCancelled):
            future.result(PATIENCE_S / 2)
        assert not gate.is_set()
        assert not bench.processes()
        assert "ttasks-copilot" not in {thread.name for thread in threading.enumerate()}
        gate.set()
    assert bench.facts(task, PermissionDecided) == []


def test_another_process_may_ask_for_the_cancel(bench: Bench) -> None:
    turn, name = in_tool(bench)
    bench.cli(turn)
    task = Task.agent("Go")
    with bench.executor() as executor:
        future = executor.submit(task)
        bench.wait_for_file(name)
        with bench.open_store() as other:
            other.tasks.cancel(task.id)
        with pytest.raises(TaskCancelled):
            future.result(PATIENCE_S)
    assert bench.is_quiet()


def test_a_graph_that_is_cancelled_aborts_its_agents_and_runs_its_finally_tasks(bench: Bench) -> None:
    turn, name = in_tool(bench)
    bench.cli(turn)
    graph = TaskGraph(title="agents")
    agent = graph.add(Task.agent("Go"))
    after = graph.add(Task.agent("After"), after=[agent])
    clean = graph.add(Task.bash("echo cleaned"), after=[after], finally_=True)
    executor = bench.executor()
    running = in_thread(lambda: graph.run(executor))
    bench.wait_for_file(name)
    bench.store.graphs.cancel(graph.id)
    running.result(PATIENCE_S)
    assert [task.status for task in (agent, after, clean)] == ["cancelled", "pending", "succeeded"]
    assert bench.is_quiet()


def test_an_abort_that_the_cli_does_not_heed_ends_the_cli(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "ABORT_WAIT_S", 0.1)
    turn, name = in_tool(bench)
    bench.cli(turn)
    task = Task.agent("Go")
    with bench.executor() as executor:
        future = executor.submit(task)
        shell = bench.wait_for_file(name)
        for process in bench.processes():
            if process.pid != int(shell):
                process.suspend()
        executor.cancel(task)
        with pytest.raises(TaskCancelled):
            future.result(PATIENCE_S)
    assert gone(shell)
    assert whys(bench, task) == ["cancelled"]
    assert [fact.outcome for fact in bench.facts(task, ToolCallEnded)] == ["aborted"]
    assert bench.is_quiet()


# The CLI dies, or falls silent.


@pytest.mark.parametrize("end", ["kill", "exit", "garbage"])
def test_a_cli_that_dies_in_the_middle_is_noticed_and_what_it_ran_is_ended(end: str, bench: Bench) -> None:
    path = bench.folder / "shell.pid"
    steps: list[Step] = [
        {"shell": f"echo $$ > {path}.new; mv {path}.new {path}; sleep 600", "in_background": True},
        {"wait_for": str(path)},
        {end: 3 if end == "exit" else True},
        {"hang": True},
    ]
    bench.cli([{"tool": "bash", "arguments": {"command": "sleep"}, "during": steps}])
    task = Task.agent("Go")
    with pytest.raises(CopilotError) as died:
        bench.executor().execute(task)
    ended = time.time()
    assert died.value.code == "cli_crashed"
    assert "the Copilot CLI ended in the middle" in str(died.value)
    assert ended - path.stat().st_mtime < NOTICED_WITHIN_S + 3
    assert whys(bench, task) == ["crashed"]
    assert [fact.outcome for fact in bench.facts(task, ToolCallEnded)] == ["aborted"]
    assert bench.facts(task, AgentTurnEnded) == []
    assert task.result is not None and task.result.error_code == "cli_crashed"
    assert gone(path.read_text())
    assert bench.is_quiet()


def test_a_cli_that_is_killed_from_outside_is_noticed_within_two_seconds(bench: Bench) -> None:
    turn, name = in_tool(bench)
    bench.cli(turn)
    task = Task.agent("Go")
    with bench.executor() as executor:
        future = executor.submit(task)
        shell = bench.wait_for_file(name)
        (cli,) = [process for process in bench.processes() if process.pid != int(shell) and process.name() != "sleep"]
        killed_at = clock.now()
        os.kill(cli.pid, signal.SIGKILL)
        with pytest.raises(CopilotError):
            future.result(PATIENCE_S)
    (aborted,) = bench.facts(task, AgentAborted)
    assert (aborted.at - killed_at).total_seconds() < NOTICED_WITHIN_S
    assert gone(shell)
    assert bench.is_quiet()


def test_a_cli_that_falls_silent_counts_as_dead(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "PING_WAIT_S", 0.2)
    turn, name = in_tool(bench)
    bench.cli(turn)
    task = Task.agent("Go")
    with bench.executor() as executor:
        future = executor.submit(task)
        shell = bench.wait_for_file(name)
        for process in bench.processes():
            if process.pid != int(shell):
                process.suspend()
        with pytest.raises(CopilotError, match=r"did not answer within 0\.2 seconds"):
            future.result(PATIENCE_S)
    assert gone(shell)
    assert bench.is_quiet()


def test_a_cli_that_never_answers_its_start_can_not_be_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "START_WAIT_S", 0.3)
    bench.cli(start="mute")
    with pytest.raises(CopilotError, match=r"did not answer within 0\.3 seconds") as mute:
        bench.executor().execute(Task.agent("Go"))
    assert mute.value.code == "cli_not_runnable"
    assert bench.is_quiet()


@pytest.mark.parametrize("what", ["create", "resume"])
def test_a_cli_that_never_opens_a_session_counts_as_dead(
    what: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "OPEN_WAIT_S", 0.5)
    bench.cli(**{what: {"hang": True}})
    if what == "create":
        with pytest.raises(CopilotError, match=r"did not answer within 0\.5 seconds") as mute:
            bench.executor().execute(Task.agent("Go"))
    else:
        with pytest.raises(CopilotError) as mute, CopilotAgentSession(cli_path=bench.cli_path) as session:
            driver = session._active()
            assert driver._thread is not None and driver._conversation is not None
            driver._thread.call(driver._conversation._go_on_with("another"))
    assert mute.value.code == "cli_unresponsive"
    assert bench.is_quiet()


def test_a_retry_after_a_crash_begins_a_new_conversation(bench: Bench) -> None:
    from ttasks import RetryPolicy

    mark = bench.folder / "crashed"
    crash = {"tool": "bash", "arguments": {"command": "x"}, "during": [{"shell": f"touch {mark}"}, {"kill": True}]}
    bench.cli(prompts={"Go": [crash]})
    task, executor = Task.agent("Go"), bench.executor()
    executor.events.subscribe(
        lambda event: bench.cli(prompts={"Go": [{"say": "Done"}]}) if event.type == "failed" else None
    )
    result = executor.execute(task, retry_policy=RetryPolicy(max_attempts=2))
    assert result.output == "Done"
    rows = bench.rows("SELECT status, error_code, session FROM attempts ORDER BY attempt")
    assert [row["error_code"] for row in rows] == ["cli_crashed", None]
    assert rows[0]["session"] != rows[1]["session"]
    assert [row["status"] for row in bench.rows("SELECT status FROM tool_calls")] == ["aborted"]


# Ctrl-C, in a program of one's own.

SCRIPT = """
import sys
from ttasks import *
import signal

def press(number, frame):
    print("pressed", flush=True)
    raise KeyboardInterrupt

signal.signal(signal.SIGINT, press)
how, ledger, cli = sys.argv[1:]
store = SQLiteStore(ledger)
task = Task.agent("Go", title="agent")
with TaskExecutor(store) as executor:
    executor.register(TaskType.AGENT, make_copilot_agent_handler(cli_path=cli))
    try:
        if how == "execute":
            executor.execute(task)
        elif how == "session":
            with CopilotAgentSession(cli_path=cli) as session:
                executor.register(TaskType.AGENT, session.handler())
                try:
                    executor.execute(task)
                except KeyboardInterrupt:
                    print("answer:", session.send_and_wait("And now?"), flush=True)
                    raise
        elif how == "asked":
            with CopilotAgentSession(cli_path=cli) as session:
                session.send_and_wait("Go")
        else:
            graph = TaskGraph(title="g")
            graph.add(task)
            graph.add(Task.bash("echo cleaned", title="clean"), after=[task], finally_=True)
            graph.run(executor)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
print("status:", task.status, flush=True)
store.close()
"""


@pytest.fixture
def start(bench: Bench) -> Iterator[Callable[[str], Running]]:
    command = Command(bench.folder)

    def begin(how: str) -> Running:
        words = [sys.executable, "-W", "error", "-c", SCRIPT, how, str(bench.ledger), str(bench.cli_path)]
        return command.start_process(words)

    yield begin
    for process in command._started:
        if process.poll() is None:
            process.kill()
            process.wait(PATIENCE_S)


@pytest.mark.parametrize("how", ["execute", "graph", "session", "asked"])
def test_ctrl_c_aborts_the_turn_and_leaves_nothing(how: str, bench: Bench, start: Callable[[str], Running]) -> None:
    turn, name = in_tool(bench)
    bench.cli(turn)
    running = start(how)
    shell = bench.wait_for_file(name)
    code, printed = running.end(signal.SIGINT)
    assert code == 0, printed
    assert "Traceback" not in printed and "interrupted" in printed
    assert gone(shell)
    until(lambda: not bench.processes())
    if how == "asked":
        return
    assert "status: cancelled" in printed
    rows = bench.rows("SELECT name, status FROM tasks ORDER BY name")
    assert [row["status"] for row in rows] == ["cancelled", *(["succeeded"] if how == "graph" else [])]
    assert bench.rows("SELECT status FROM tool_calls") == [{"status": "aborted"}]
    if how == "session":
        assert "answer: And now?" in printed
    assert verify(bench.store._readers).is_clean


def test_a_second_ctrl_c_leaves_the_agent_interrupted(bench: Bench, start: Callable[[str], Running]) -> None:
    turn, name = in_tool(bench)
    bench.cli(turn)
    running = start("graph")
    shell = bench.wait_for_file(name)
    # The CLI is held until both have come, so that the first can't have had its effect by then.
    (cli,) = [process for process in bench.processes() if process.pid != int(shell) and process.name() != "sleep"]
    cli.suspend()
    for _ in range(2):
        os.kill(running.process.pid, signal.SIGINT)
        running.until("pressed")
        until(lambda: bench.rows("SELECT 1 FROM events WHERE type = 'GraphCancelRequested'"))
    cli.resume()
    code, printed = running.end()
    assert code == 0, printed
    assert "Traceback" not in printed and "interrupted" in printed
    assert gone(shell)
    until(lambda: not bench.processes())
    rows = bench.rows("SELECT name, status FROM tasks ORDER BY name")
    assert [(row["name"], row["status"]) for row in rows] == [("agent", "interrupted"), ("clean", "pending")]


def test_ctrl_c_while_the_cli_starts_leaves_nothing(bench: Bench, start: Callable[[str], Running]) -> None:
    bench.cli(start="mute")
    running = start("execute")
    until(lambda: bench.asked("connect"))
    code, printed = running.end(signal.SIGINT)
    assert code == 0, printed
    assert "status: cancelled" in printed
    until(lambda: not bench.processes())


def test_a_terminal_that_sends_ctrl_c_to_the_whole_group_does_not_reach_the_cli(
    bench: Bench, start: Callable[[str], Running]
) -> None:
    bench.cli([{"wait_for": str(bench.folder / "never")}])
    running = start("execute")
    until(bench.prompts)
    (cli,) = bench.processes()
    assert os.getsid(cli.pid) == cli.pid != os.getsid(running.process.pid)
    running.end(signal.SIGINT)
    until(lambda: not bench.processes())


# What comes too late, or from a subscriber.


def told(bench: Bench) -> list[str]:
    """Return the kinds of the decisions that the CLI was told."""
    answers = [params["result"] for params in bench.asked("session.permissions.handlePendingPermissionRequest")]
    return [answer["kind"] for answer in answers]


def test_a_request_that_is_approved_after_the_turn_has_ended_is_denied(bench: Bench) -> None:
    bench.cli([{"tool": "bash", "arguments": {"command": "rm -r build"}}, {"say": "Done"}])
    asked, answered = threading.Event(), threading.Event()

    def late(_: PermissionRequest) -> bool:
        asked.set()
        return answered.wait(PATIENCE_S)

    with CopilotAgentSession(cli_path=bench.cli_path, permissions=late) as session, bench.executor() as executor:
        executor.register(TaskType.AGENT, session.handler())
        task = Task.agent("Go")
        running = executor.submit(task)
        assert asked.wait(PATIENCE_S)
        executor.cancel(task)
        with pytest.raises(TaskCancelled):
            running.result(PATIENCE_S)
        answered.set()
        until(lambda: told(bench))
    assert told(bench) == ["reject"]
    assert bench.facts(task, PermissionDecided) == []


def test_a_decision_that_came_while_the_turn_was_ended_is_recorded_as_a_denial(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.cli([{"tool": "bash", "arguments": {"command": "rm -r build"}}, {"say": "Done"}])
    abort = conversation.Conversation._abort
    task = Task.agent("Go")
    asked, ending = threading.Event(), threading.Event()

    def late(_: PermissionRequest) -> bool:
        asked.set()
        return ending.wait(PATIENCE_S)

    async def abort_later(*arguments: Any) -> None:
        ending.set()
        await asyncio.to_thread(until, lambda: bench.facts(task, PermissionDecided))
        await abort(*arguments)

    monkeypatch.setattr(conversation.Conversation, "_abort", abort_later)
    with bench.executor(permissions=late) as executor:
        running = executor.submit(task)
        assert asked.wait(PATIENCE_S)
        executor.cancel(task)
        with pytest.raises(TaskCancelled):
            running.result(PATIENCE_S)
    assert [(fact.decision, fact.by) for fact in bench.facts(task, PermissionDecided)] == [("denied", "too late")]
    assert told(bench) in ([], ["reject"])


@pytest.mark.parametrize("kind", [TaskEventType.PROGRESS, TaskEventType.OUTPUT])
def test_a_subscriber_of_an_agents_task_may_shut_the_executor_down(kind: TaskEventType, bench: Bench) -> None:
    bench.cli([{"tool": "bash", "arguments": {"command": "ls"}}, {"say": "One\nTwo"}])
    executor = bench.executor()
    executor.events.subscribe(lambda event: executor.shutdown() if event.type is kind else None)
    task = Task.agent("Go")
    executor.submit(task).result(PATIENCE_S)
    assert task.status is TaskStatus.SUCCEEDED
    assert bench.is_quiet()
