"""Copilot tasks with the real CLI, and a server in the model's place. Nothing leaves this machine."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from commands import Command
from copilots import Bench, gone
from doubles.model_server import CallTool, Fail, Hang, ModelServer, Say, Usage, text_of
from doubles.real import RealCli
from processes import PATIENCE_S, until
from ttasks import (
    CopilotAgentSession,
    CopilotError,
    Task,
    TaskCancelled,
    TaskExecutor,
    TaskGraph,
    TaskStatus,
)
from ttasks.events.agent_facts import (
    AgentErred,
    AgentPrompted,
    AgentSessionOpened,
    AgentTurnEnded,
    ModelCalled,
    PermissionDecided,
    ToolCallEnded,
    ToolCallStarted,
)
from ttasks.handlers.copilot.conversation import GO_ON
from ttasks.log.verify import verify


@pytest.fixture
def model() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture
def real(real_cli: RealCli, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> RealCli:
    monkeypatch.setenv("HOME", str(real_cli.home))
    assert real_cli.copilot_home == bench.home
    return real_cli


@pytest.fixture
def executor(real: RealCli, bench: Bench, model: ModelServer) -> Iterator[TaskExecutor]:
    with bench.executor(cli_path=real.path, provider=model.provider, model="model-of-tests") as made:
        yield made


def bash(command: str) -> CallTool:
    return CallTool("bash", {"command": command, "description": "x"})


def outcomes(bench: Bench, task: Task) -> list[str]:
    return [fact.outcome for fact in bench.facts(task, ToolCallEnded)]


def test_a_prompt_is_answered(executor: TaskExecutor, bench: Bench, model: ModelServer) -> None:
    model.script([Say("Forty two, I think", Usage(prompt=1000, completion=20, cached=900))])
    task = Task.prompt("How much is it?")
    assert executor.execute(task).output == "Forty two, I think"
    (request,) = model.requests
    assert (request.prompt, request.tools, request.body["model"]) == ("How much is it?", [], "model-of-tests")
    (called,) = bench.facts(task, ModelCalled)
    assert (called.input_tokens, called.output_tokens, called.cache_read_tokens) == (1000, 20, 900)
    (totals,) = bench.facts(task, AgentTurnEnded)
    assert (totals.model_calls, totals.input_tokens, totals.requests) == (1, 1000, 1)
    assert (totals.nano_aiu, totals.premium_requests or 0) == (None, 0)
    (opened,) = bench.facts(task, AgentSessionOpened)
    assert opened.cli_version and opened.provider == model.url
    assert bench.is_quiet()


def test_an_agent_runs_commands_and_edits_files(executor: TaskExecutor, bench: Bench, model: ModelServer) -> None:
    notes = Path("notes.txt").resolve()
    notes.write_text("one\n")
    model.script(
        [
            bash("echo hi; exit 3"),
            CallTool("edit", {"path": str(notes), "old_str": "one", "new_str": "two"}, text="Now the file"),
            CallTool("create", {"path": str(notes.with_name("new.txt")), "file_text": "new\n"}),
            Say("All done"),
        ]
    )
    task = Task.agent("Do it")
    assert executor.execute(task).output == "All done"
    assert (notes.read_text(), notes.with_name("new.txt").read_text()) == ("two\n", "new\n")
    ended = bench.facts(task, ToolCallEnded)
    assert [(fact.outcome, fact.exit_code) for fact in ended] == [
        ("failed", 3),
        ("succeeded", None),
        ("succeeded", None),
    ]
    assert "hi" in ended[0].output
    assert [(edit.path, edit.kind) for fact in ended[1:] for edit in fact.files or ()] == [
        (str(notes), "edit"),
        (str(notes.with_name("new.txt")), "create"),
    ]
    assert [fact.tool for fact in bench.facts(task, ToolCallStarted)] == ["bash", "edit", "create"]
    assert [row["kind"] for row in bench.rows("SELECT kind FROM permissions ORDER BY position")] == [
        "shell",
        "write",
        "write",
    ]
    (totals,) = bench.facts(task, AgentTurnEnded)
    assert (totals.model_calls, totals.lines_added) == (4, 2)
    assert verify(bench.store._readers).is_clean


def test_what_is_denied_is_not_done_and_the_agent_hears_why(
    real: RealCli, bench: Bench, model: ModelServer, tmp_path: Path
) -> None:
    model.script([bash("touch made; echo made"), CallTool("view", {"path": str(tmp_path)}), Say("I may not")])
    executor = bench.executor(cli_path=real.path, provider=model.provider, permissions=["read", "deny shell(touch *)"])
    task = Task.agent("Do it")
    assert executor.execute(task).output == "I may not"
    assert not Path("made").exists()
    decided = bench.facts(task, PermissionDecided)
    assert {(fact.decision, fact.by) for fact in decided} == {("denied", "deny shell(touch *)"), ("denied", "no rule")}
    assert outcomes(bench, task) == ["denied", "denied"]
    assert "the rule 'deny shell(touch *)' forbids it" in "".join(model.requests[1].tool_results)


def test_a_session_remembers(real: RealCli, bench: Bench, model: ModelServer) -> None:
    with CopilotAgentSession(cli_path=real.path, provider=model.provider, model="m") as session:
        executor = bench.executor(cli_path=real.path)
        from ttasks import TaskType

        executor.register(TaskType.AGENT, session.handler())
        tasks = [Task.agent("My name is Ann"), Task.agent("Who am I?")]
        for task in tasks:
            executor.execute(task)
        assert session.send_and_wait("And now?") == "And now?"
    said = [text_of(message) for message in model.requests[-1].messages if message["role"] == "user"]
    assert all(any(text in part for part in said) for text in ("My name is Ann", "Who am I?", "And now?"))
    assert [fact.requests for task in tasks for fact in bench.facts(task, AgentTurnEnded)] == [1, 1]
    assert [fact.input_tokens for task in tasks for fact in bench.facts(task, AgentTurnEnded)] == [100, 100]
    assert bench.is_quiet()


def test_a_cancel_in_the_middle_of_a_tool_ends_what_it_runs(
    executor: TaskExecutor, bench: Bench, model: ModelServer
) -> None:
    model.script([bash("echo $$ > pid.new; mv pid.new pid; sleep 601")])
    task = Task.agent("Sleep")
    future = executor.submit(task)
    until(Path("pid").exists)
    begun = time.monotonic()
    executor.cancel(task)
    with pytest.raises(TaskCancelled):
        future.result(PATIENCE_S)
    assert time.monotonic() - begun < 15
    assert gone(Path("pid").read_text())
    assert outcomes(bench, task) == ["aborted"]
    assert bench.is_quiet()


def test_time_that_is_up_ends_a_model_that_hangs(executor: TaskExecutor, bench: Bench, model: ModelServer) -> None:
    model.script([Hang("Half an ")])
    task = Task.agent("Go", timeout=4)
    with pytest.raises(TimeoutError, match="Task timed out after 4 seconds"):
        executor.execute(task)
    assert task.result is not None and task.result.output == "Half an "
    model.wait_for_departed()
    assert bench.is_quiet()


@pytest.mark.parametrize(
    ("answers", "code", "status"),
    [
        ([Fail(401, "bad key")] * 6, "provider_refused", 401),
        ([Fail(404, "no such model")], "model_unavailable", 404),
        ([Fail(429, "slow down", {"retry-after": "0"})] * 12, "rate_limited", 429),
        ([Fail(500, "it broke", {"retry-after": "0"})] * 12, "provider_failed", 500),
    ],
    ids=["401", "404", "429", "500"],
)
def test_what_the_endpoint_refuses_fails_the_task_with_a_code(
    answers: list[Any], code: str, status: int, executor: TaskExecutor, bench: Bench, model: ModelServer
) -> None:
    model.script(answers)
    task = Task.agent("Go")
    with pytest.raises(CopilotError) as failed:
        executor.execute(task)
    assert failed.value.code == code
    assert model.url in str(failed.value)
    assert bench.rows("SELECT error_code FROM attempts") == [{"error_code": code}]
    last = bench.facts(task, AgentErred)[-1]
    assert (last.status_code, last.is_retried) == (status, False)


def test_an_endpoint_that_is_not_there_is_named(real: RealCli, bench: Bench) -> None:
    with ModelServer() as server:
        provider = server.provider
    task = bench.run(executor=bench.executor(cli_path=real.path, provider=provider), timeout=60)
    assert task.result is not None and task.result.error_code == "provider_unreachable"
    assert provider["base_url"] in (task.error or "")


def test_a_cli_that_is_killed_in_a_tool_is_noticed_and_nothing_of_it_is_left(
    executor: TaskExecutor, bench: Bench, model: ModelServer
) -> None:
    model.script([bash("echo $$ > pid.new; mv pid.new pid; sleep 602")])
    task = Task.agent("Sleep")
    future = executor.submit(task)
    until(Path("pid").exists)
    (row,) = bench.rows("SELECT pid FROM attempts")
    os.kill(row["pid"], signal.SIGKILL)
    killed = time.monotonic()
    with pytest.raises(CopilotError) as died:
        future.result(PATIENCE_S)
    assert died.value.code == "cli_crashed"
    assert time.monotonic() - killed < 8
    assert gone(Path("pid").read_text())
    assert bench.is_quiet()


def test_scripts_prompts_and_agents_make_one_graph(executor: TaskExecutor, bench: Bench, model: ModelServer) -> None:
    graph = TaskGraph(title="mixed")
    make = graph.add(Task.bash("echo built > built.txt"))
    look = graph.add(Task.agent("look"), after=[make])
    summary = graph.add(Task.prompt("sum it up"), after=[look])
    graph.add(Task.bash("rm built.txt"), after=[summary], finally_=True)
    model.script([bash("cat built.txt"), Say("It is built"), Say("Fine")])
    graph.run(executor)
    assert graph.ok
    assert [task.result.output for task in graph if task.result is not None] == ["", "It is built", "Fine", ""]
    assert not Path("built.txt").exists()
    assert "built" in "".join(model.requests[1].tool_results)
    assert verify(bench.store._readers).is_clean


def test_it_talks_to_nobody_else_and_its_shell_has_no_secrets(
    executor: TaskExecutor, bench: Bench, model: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GITHUB_TOKEN", "GH_TOKEN", "COPILOT_GITHUB_TOKEN", "COPILOT_PROVIDER_API_KEY", "ANY_SECRET"):
        monkeypatch.setenv(name, "not-for-agents")
    addresses: set[str] = set()
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(0.01):
            for process in bench.processes():
                try:
                    addresses.update(found.raddr.ip for found in process.net_connections("inet") if found.raddr)
                except psutil.Error:
                    continue

    looking = threading.Thread(target=look)
    looking.start()
    try:
        model.script([bash("env > environment; sleep 0.3"), Hang("Done")])
        future = executor.submit(Task.agent("Go"))
        model.wait_for_hanging()
        until(lambda: addresses)
        model.release()
        assert future.result(PATIENCE_S).output == "Done"
    finally:
        is_over.set()
        looking.join()
    assert addresses == {"127.0.0.1"}
    environment = Path("environment").read_text()
    assert "PATH=" in environment
    assert "not-for-agents" not in environment and "sk-of-no-use" not in environment
    assert b"not-for-agents" not in bench.raw() and b"sk-of-no-use" not in bench.raw()


def test_a_token_is_not_in_the_agents_environment(real: RealCli, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GH_TOKEN", "ghp_not_for_agents")
    # With a token it would ask GitHub: it is told that GitHub is a port of ours, where nobody listens.
    with ModelServer() as server:
        nowhere = server.url
    variables = {"COPILOT_API_URL": nowhere, "COPILOT_DEBUG_GITHUB_API_URL": nowhere}
    task = Task.agent("Go", env=variables)
    with bench.executor(cli_path=real.path) as executor:
        future = executor.submit(task)
        environments = until(lambda: [process.environ() for process in bench.processes()])
        assert isinstance(future.exception(PATIENCE_S), CopilotError)
    assert all("ghp_not_for_agents" not in value for found in environments for value in found.values())
    assert task.result is not None and task.result.error_code == "not_authenticated"
    assert bench.is_quiet()


KILLED = """
import json, sys
from ttasks import *
ledger, cli, provider = sys.argv[1:]
executor = TaskExecutor(SQLiteStore(ledger))
handler = make_copilot_agent_handler(cli_path=cli, provider=json.loads(provider), model="model-of-tests")
executor.register(TaskType.AGENT, handler)
executor.execute(Task.agent("Sleep a while"))
"""


def test_an_agent_goes_on_after_its_whole_program_was_killed_in_a_tool(
    real: RealCli, executor: TaskExecutor, bench: Bench, model: ModelServer
) -> None:
    import json

    model.script([bash("echo $$ > pid.new; mv pid.new pid; sleep 603"), Say("Awake again")])
    command = Command(bench.folder / "work")
    words = [sys.executable, "-c", KILLED, str(bench.ledger), str(real.path), json.dumps(model.provider)]
    running = command.start_process(words)
    try:
        until(Path("pid").exists)
    finally:
        running.kill()
    (task,) = bench.store.tasks.values()
    (resumed,) = executor.resume(task.id)
    assert isinstance(resumed, Task) and resumed.status is TaskStatus.SUCCEEDED
    assert resumed.result is not None and resumed.result.output == "Awake again"
    opened = bench.facts(resumed, AgentSessionOpened)
    assert [fact.is_resumed for fact in opened] == [False, True]
    assert len({fact.session for fact in opened}) == 1
    assert [fact.prompt for fact in bench.facts(resumed, AgentPrompted)] == ["Sleep a while", GO_ON + "Sleep a while"]
    said = [text_of(message) for message in model.requests[-1].messages]
    assert sum("Sleep a while" in text for text in said) == 2
    assert any(GO_ON.strip() in text for text in said)
    assert any("sleep 603" in str(message.get("tool_calls")) for message in model.requests[-1].messages)
    assert gone(Path("pid").read_text())
    assert bench.is_quiet()
    assert verify(bench.store._readers).is_clean
