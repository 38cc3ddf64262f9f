"""An agent that was interrupted is gone on with in its own conversation, where there still is one."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest

from commands import Command
from copilots import Bench, gone, pid_of_shell
from processes import PATIENCE_S, in_thread, until
from ttasks import CopilotAgentSession, Task, TaskExecutor, TaskGraph, TaskStatus, TaskType
from ttasks.events.agent_facts import AgentAborted, AgentPrompted, AgentSessionOpened, AgentTurnEnded, ToolCallEnded
from ttasks.events.facts import ProcessReaped, TaskStarted
from ttasks.handlers.copilot.conversation import GO_ON
from ttasks.log.verify import verify
from ttasks.runtime.beginning import Beginning
from ttasks.runtime.graph_run import GraphRun


def scripted(bench: Bench, *, in_tool: bool = True) -> str:
    """Let the prompt `Go` hang in a tool; return the name of the file that holds the tool's process."""
    shell, name = pid_of_shell(bench)
    step = {"tool": "bash", "arguments": {"command": "sleep"}, "during": [shell]}
    bench.cli(prompts={"Go": [step if in_tool else shell]})
    return name


def interrupt(executor: TaskExecutor, graph: TaskGraph, reached: Callable[[], Any]) -> None:
    """Run a graph, and stop it at once when `reached` returns, as a program does that is told to leave."""
    run = GraphRun(Beginning(executor, graph, 1))
    running = in_thread(run.run)
    reached()
    run._pass_on([SystemExit()])
    running.result(PATIENCE_S)


def agents(*payloads: str) -> tuple[TaskGraph, list[Task]]:
    """Return a graph of agents, one after the other."""
    graph = TaskGraph(title="agents")
    tasks: list[Task] = []
    for payload in payloads:
        tasks.append(graph.add(Task.agent(payload, title=payload), after=tasks[-1:]))
    return graph, tasks


def opened(bench: Bench, task: Task) -> list[tuple[int, bool]]:
    return [(fact.attempt, fact.is_resumed) for fact in bench.facts(task, AgentSessionOpened)]


def sessions(bench: Bench, task: Task) -> list[str]:
    return [row["session"] for row in bench.rows("SELECT session FROM attempts WHERE task_id = ?", task.id)]


def prompted(bench: Bench, task: Task) -> list[str]:
    return [fact.prompt for fact in bench.facts(task, AgentPrompted)]


KILLED = """
import sys
from ttasks import *
how, ledger, cli = sys.argv[1:]
executor = TaskExecutor(SQLiteStore(ledger))
executor.register(TaskType.AGENT, make_copilot_agent_handler(cli_path=cli))
executor.register(TaskType.PROMPT, make_copilot_prompt_handler(cli_path=cli))
graph = TaskGraph(title="g")
first = graph.add(Task.agent("First", title="first"))
second = graph.add(Task.agent("Go", title="second") if how != "prompt" else Task.prompt("Go"), after=[first])
graph.add(Task.bash("echo cleaned"), after=[second], finally_=True)
if how == "session":
    with CopilotAgentSession(cli_path=cli) as session:
        executor.register(TaskType.AGENT, session.handler())
        graph.run(executor)
else:
    graph.run(executor)
"""


RESUMING = """
import sys
from ttasks import *
ledger, cli = sys.argv[1:]
executor = TaskExecutor(SQLiteStore(ledger))
executor.register(TaskType.AGENT, make_copilot_agent_handler(cli_path=cli))
executor.resume()
"""


def kill_a_run(bench: Bench, how: str, file: str) -> TaskGraph:
    """Run the graph in another process, kill that when the second task runs its tool; return the graph."""
    command = Command(bench.folder)
    running = command.start_process([sys.executable, "-c", KILLED, how, str(bench.ledger), str(bench.cli_path)])
    try:
        bench.wait_for_file(file)
    finally:
        running.kill()
    (graph,) = bench.store.graphs.values()
    return graph


def test_an_agent_of_a_process_that_was_killed_goes_on_in_its_conversation(bench: Bench) -> None:
    file = scripted(bench)
    graph = kill_a_run(bench, "agent", file)
    (resumed,) = bench.executor().resume(graph)
    assert isinstance(resumed, TaskGraph) and resumed.ok
    first, second, clean = resumed
    assert gone(bench.wait_for_file(file))
    assert (first.attempts, second.attempts, clean.attempts) == (1, 2, 1)
    assert opened(bench, second) == [(1, False), (2, True)]
    assert len(set(sessions(bench, second))) == 1
    assert sessions(bench, first) != sessions(bench, second)[:1]
    assert prompted(bench, second) == ["Go", GO_ON + "Go"]
    assert bench.prompts() == ["First", "Go", GO_ON + "Go"]
    assert second.result is not None and second.result.output == GO_ON + "Go"
    assert "goes on with the conversation that was interrupted" in bench.spoken("progress")
    assert [row["status"] for row in bench.rows("SELECT status FROM tool_calls")] == ["unknown"]
    (totals,) = bench.facts(second, AgentTurnEnded)
    assert (totals.attempt, totals.requests, totals.model_calls) == (2, 1, 1)
    assert verify(bench.store._readers).is_clean
    assert bench.is_quiet()


WORKFLOW = """
title: flow
tasks:
  ask: {prompt: "What?"}
  work: {agent: "Go", after: [ask]}
  clean: {bash: "echo cleaned", after: [work], finally: true}
"""


def test_the_command_runs_agents_is_ended_by_sigterm_and_resumes_them(bench: Bench) -> None:
    file = scripted(bench)
    command = Command(bench.folder)
    command.write("flow.yaml", WORKFLOW)
    variables = {"COPILOT_CLI_PATH": str(bench.cli_path)}
    try:
        running = command.start("run", "flow.yaml", **variables)
        shell = bench.wait_for_file(file)
        code, printed = running.end(signal.SIGTERM)
        assert code != 0 and "Traceback" not in printed
        assert command.statuses() == {"ask": "succeeded", "work": "interrupted", "clean": "pending"}
        assert gone(shell)
        until(lambda: not bench.processes())
        resumed = command("resume", **variables)
        assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    finally:
        command.clean_up()
    assert command.statuses() == dict.fromkeys(("ask", "work", "clean"), "succeeded")
    assert bench.prompts() == ["What?", "Go", GO_ON + "Go"]
    assert "goes on with the conversation that was interrupted" in resumed.stdout


def test_where_the_conversation_is_gone_a_new_one_is_begun(bench: Bench) -> None:
    file = scripted(bench)
    graph, (task,) = agents("Go")
    executor = bench.executor()
    interrupt(executor, graph, lambda: bench.wait_for_file(file))
    assert task.status is TaskStatus.INTERRUPTED
    shutil.rmtree(bench.home / "session-state")
    bench.cli()
    executor.resume(graph)
    assert task.status is TaskStatus.SUCCEEDED
    assert opened(bench, task) == [(1, False), (2, False)]
    assert len(set(sessions(bench, task))) == 2
    assert prompted(bench, task) == ["Go", "Go"]
    assert "goes on with the conversation that was interrupted" not in bench.spoken("progress")
    assert bench.is_quiet()


def test_an_agent_that_is_told_to_stop_at_once_says_so_and_goes_on_later(bench: Bench) -> None:
    file = scripted(bench)
    graph, (task, after) = agents("Go", "After")
    executor = bench.executor()
    interrupt(executor, graph, lambda: bench.wait_for_file(file))
    assert [fact.why for fact in bench.facts(task, AgentAborted)] == ["stopped"]
    assert [fact.outcome for fact in bench.facts(task, ToolCallEnded)] == ["aborted"]
    assert bench.is_quiet()
    executor.resume(graph)
    assert [one.status for one in (task, after)] == ["succeeded", "succeeded"]
    assert opened(bench, task) == [(1, False), (2, True)]
    assert opened(bench, after) == [(1, False)]
    assert prompted(bench, task) == ["Go", GO_ON + "Go"]


def test_running_the_graph_again_goes_on_as_well(bench: Bench) -> None:
    file = scripted(bench)
    graph, (task,) = agents("Go")
    executor = bench.executor()
    interrupt(executor, graph, lambda: bench.wait_for_file(file))
    graph.run(executor)
    assert task.status is TaskStatus.SUCCEEDED
    assert opened(bench, task) == [(1, False), (2, True)]


def test_an_agent_that_was_interrupted_before_it_was_prompted_is_prompted_as_if_it_had_not(bench: Bench) -> None:
    graph, (task,) = agents("Go")
    bench.cli(create={"hang": True})
    executor = bench.executor()
    interrupt(executor, graph, lambda: until(lambda: bench.asked("session.create")))
    bench.cli()
    executor.resume(graph)
    assert task.status is TaskStatus.SUCCEEDED
    assert bench.prompts() == ["Go"]
    assert opened(bench, task) == [(2, False)]


def test_an_agent_that_is_interrupted_again_before_it_was_prompted_still_has_its_conversation(bench: Bench) -> None:
    graph = kill_a_run(bench, "agent", scripted(bench))
    task = list(graph)[1]
    bench.cli(start="mute")
    words = [sys.executable, "-c", RESUMING, str(bench.ledger), str(bench.cli_path)]
    resuming = Command(bench.folder).start_process(words)
    until(lambda: len(sessions(bench, task)) == 2 and bench.processes())
    resuming.kill()
    assert sessions(bench, task)[1] is None
    bench.cli()
    (graph,) = bench.store.graphs.values()
    (resumed,) = bench.executor().resume(graph)
    assert isinstance(resumed, TaskGraph) and resumed.ok
    assert opened(bench, task) == [(1, False), (3, True)]
    assert prompted(bench, task) == ["Go", GO_ON + "Go"]


def test_a_prompt_is_simply_asked_again(bench: Bench) -> None:
    graph = kill_a_run(bench, "prompt", scripted(bench, in_tool=False))
    bench.cli()
    (resumed,) = bench.executor().resume(graph)
    assert isinstance(resumed, TaskGraph) and resumed.ok
    second = list(resumed)[1]
    assert opened(bench, second) == [(1, False), (2, False)]
    assert prompted(bench, second) == ["Go", "Go"]


def test_a_conversation_that_can_not_be_taken_up_for_another_reason_fails_the_task(bench: Bench) -> None:
    file = scripted(bench)
    graph, (task,) = agents("Go")
    executor = bench.executor()
    interrupt(executor, graph, lambda: bench.wait_for_file(file))
    bench.cli(resume={"error": "the disk is on fire"})
    executor.resume(graph)
    assert task.status is TaskStatus.FAILED
    assert "the disk is on fire" in (task.error or "")
    assert task.result is not None and task.result.error_code == "copilot_error"
    assert bench.is_quiet()


def test_a_failed_attempt_is_not_gone_on_with(bench: Bench) -> None:
    bench.cli([{"fail": {"errorType": "query", "message": "odd"}}])
    task, executor = Task.agent("Go"), bench.executor()
    with pytest.raises(RuntimeError):
        executor.execute(task)
    bench.cli()
    executor.execute(task)
    assert opened(bench, task) == [(1, False), (2, False)]
    assert prompted(bench, task) == ["Go", "Go"]


# Sessions of one's own.


def test_a_session_of_a_resuming_program_takes_up_the_one_that_was_interrupted(bench: Bench) -> None:
    graph = kill_a_run(bench, "session", scripted(bench))
    with CopilotAgentSession(cli_path=bench.cli_path) as session:
        fresh = session.session_id
        executor = bench.executor()
        executor.register(TaskType.AGENT, session.handler())
        (resumed,) = executor.resume(graph)
        assert isinstance(resumed, TaskGraph) and resumed.ok
        first, second, _ = resumed
        later = bench.run("Later", executor=executor)
        assert session.session_id == sessions(bench, first)[0] != fresh
    assert opened(bench, second) == [(1, True), (2, True)]
    assert len({*sessions(bench, first), *sessions(bench, second), *sessions(bench, later)}) == 1
    assert bench.prompts() == ["First", "Go", GO_ON + "Go", "Later"]
    (totals,) = bench.facts(second, AgentTurnEnded)
    assert totals.requests == 1
    names = {fact.handler for fact in bench.facts(second, TaskStarted)}
    assert names == {"ttasks.copilot_session_handler"}
    assert bench.is_quiet()


def test_what_an_agent_of_a_session_left_is_ended_though_its_cli_died_with_the_process(bench: Bench) -> None:
    file = scripted(bench)
    command = Command(bench.folder)
    running = command.start_process([sys.executable, "-c", KILLED, "session", str(bench.ledger), str(bench.cli_path)])
    shell = bench.wait_for_file(file)
    (cli,) = [process for process in bench.processes() if any("fake_cli" in word for word in process.cmdline())]
    cli.suspend()  # or it would end the shell when it sees that nobody asks it any more
    running.kill()
    cli.kill()
    assert not gone(shell)
    (graph,) = bench.store.graphs.values()
    bench.cli()
    with CopilotAgentSession(cli_path=bench.cli_path) as session:
        executor = bench.executor()
        executor.register(TaskType.AGENT, session.handler())
        (resumed,) = executor.resume(graph)
    assert isinstance(resumed, TaskGraph) and resumed.ok
    assert gone(shell)
    second = list(resumed)[1]
    assert [fact.pids for fact in bench.facts(second, ProcessReaped)] != []
    assert bench.is_quiet()


def test_a_session_goes_on_with_a_task_that_was_interrupted_in_it(bench: Bench) -> None:
    file = scripted(bench)
    graph, (task,) = agents("Go")
    with CopilotAgentSession(cli_path=bench.cli_path) as session:
        executor = bench.executor()
        executor.register(TaskType.AGENT, session.handler())
        bench.run("Before", executor=executor)
        interrupt(executor, graph, lambda: bench.wait_for_file(file))
        executor.resume(graph)
    assert task.status is TaskStatus.SUCCEEDED
    assert bench.prompts() == ["Before", "Go", GO_ON + "Go"]
    assert opened(bench, task) == [(1, True), (2, True)]
    assert len(bench.asked("session.create")) == 1
    assert bench.asked("session.resume") == []


def test_a_session_in_which_something_was_said_already_stays_what_it_is(bench: Bench) -> None:
    file = scripted(bench)
    graph, (task,) = agents("Go")
    executor = bench.executor()
    with CopilotAgentSession(cli_path=bench.cli_path) as session:
        executor.register(TaskType.AGENT, session.handler())
        interrupt(executor, graph, lambda: bench.wait_for_file(file))
    bench.cli()
    with CopilotAgentSession(cli_path=bench.cli_path) as session:
        name = session.session_id
        executor.register(TaskType.AGENT, session.handler())
        bench.run("Before", executor=executor)
        executor.resume(graph)
        assert session.session_id == name
    assert bench.prompts() == ["Go", "Before", "Go"]
    assert opened(bench, task) == [(1, False), (2, True)]


def test_a_session_whose_predecessor_is_gone_is_used_as_it_is(bench: Bench) -> None:
    file = scripted(bench)
    graph, (task,) = agents("Go")
    executor = bench.executor()
    with CopilotAgentSession(cli_path=bench.cli_path) as session:
        executor.register(TaskType.AGENT, session.handler())
        interrupt(executor, graph, lambda: bench.wait_for_file(file))
    shutil.rmtree(bench.home / "session-state")
    bench.cli()
    with CopilotAgentSession(cli_path=bench.cli_path) as session:
        executor.register(TaskType.AGENT, session.handler())
        executor.resume(graph)
        assert session.session_id == sessions(bench, task)[1]
    assert bench.prompts() == ["Go", "Go"]
    assert opened(bench, task) == [(1, False), (2, False)]
    assert bench.is_quiet()
