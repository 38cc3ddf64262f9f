"""Prompts and agents: what they are told, by options and by the environment, and what comes back."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from copilots import BYOK, Bench
from ttasks import (
    CopilotAgentSession,
    Task,
    TaskContext,
    TaskExecutor,
    TaskGraph,
    TaskStatus,
    TaskType,
    make_copilot_agent_handler,
    make_copilot_prompt_handler,
)
from ttasks.events.agent_facts import AgentPrompted, AgentSessionOpened
from ttasks.events.facts import TaskStarted

MAKERS: list[Callable[..., Any]] = [make_copilot_prompt_handler, make_copilot_agent_handler, CopilotAgentSession]


def created(bench: Bench) -> dict[str, Any]:
    """Return what the latest session was created with."""
    return bench.asked("session.create")[-1]


def opened(bench: Bench, task: Task) -> AgentSessionOpened:
    (fact,) = bench.facts(task, AgentSessionOpened)
    return fact


# What comes back.


def test_a_prompt_is_answered_in_one_turn_without_tools(bench: Bench) -> None:
    bench.cli([{"say": "Forty two"}])
    task = Task.prompt("How much?")
    result = bench.executor().execute(task)
    assert (result.output, result.raw, result.error, result.termination_reason) == (
        "Forty two",
        "Forty two",
        None,
        None,
    )
    assert result is task.result
    assert bench.prompts() == ["How much?"]
    assert created(bench)["availableTools"] == []
    assert opened(bench, task).permissions == ("deny_all",)
    assert opened(bench, task).tools == ()
    assert bench.is_quiet()


def test_an_agent_is_sent_the_payload_and_its_last_text_is_the_output(bench: Bench) -> None:
    bench.cli([{"tool": "bash", "arguments": {"command": "ls"}, "text": "Let me see"}, {"say": "All done"}])
    task = bench.run("Do it")
    assert task.status is TaskStatus.SUCCEEDED
    assert task.result is not None and task.result.output == "All done"
    assert bench.prompts() == ["Do it"]
    assert "availableTools" not in created(bench)
    assert bench.is_quiet()


@pytest.mark.parametrize("steps", [[], [{"say": ""}], [{"tool": "bash", "arguments": {"command": "ls"}}]])
def test_an_agent_that_says_nothing_has_an_empty_output(steps: list[dict[str, Any]], bench: Bench) -> None:
    bench.cli(steps)
    task = bench.run()
    assert task.status is TaskStatus.SUCCEEDED
    assert task.result is not None and task.result.output == ""


def test_the_names_of_the_handlers_are_in_the_log_and_do_not_depend_on_where_they_are_made(bench: Bench) -> None:
    executor = bench.executor()
    prompt, agent = Task.prompt("a"), Task.agent("b")
    executor.execute(prompt)
    executor.execute(agent)
    names = [fact.handler for task in (prompt, agent) for fact in bench.facts(task, TaskStarted)]
    assert names == ["ttasks.copilot_prompt_handler", "ttasks.copilot_agent_handler"]


def test_a_handler_works_without_an_executor(bench: Bench) -> None:
    handler = make_copilot_agent_handler(cli_path=bench.cli_path)
    assert handler(TaskContext(Task.agent("Echo this"))) == "Echo this"
    assert bench.is_quiet()


def test_an_executor_without_a_ledger_runs_agents_as_well(bench: Bench) -> None:
    with TaskExecutor() as executor:
        executor.register(TaskType.AGENT, make_copilot_agent_handler(cli_path=bench.cli_path))
        heard: list[str] = []
        executor.events.subscribe(lambda event: heard.append(str(event.type)))
        assert executor.execute(Task.agent("Echo this")).output == "Echo this"
    assert heard == ["started", "output", "succeeded"]


def test_agents_of_a_graph_run_at_once_each_in_a_session_of_its_own(bench: Bench) -> None:
    graph = TaskGraph(title="three")
    for name in ("one", "two", "three"):
        graph.add(Task.agent(name, title=name))
    graph.run(bench.executor(), max_workers=3)
    assert graph.ok
    assert sorted(task.result.output for task in graph if task.result is not None) == ["one", "three", "two"]
    assert len({row["session"] for row in bench.rows("SELECT session FROM attempts")}) == 3
    assert bench.is_quiet()


# Options.


def test_prompts_have_a_minute_and_agents_have_no_limit_unless_it_is_said(bench: Bench) -> None:
    defaults = [inspect.signature(make).parameters["timeout"].default for make in MAKERS]
    assert defaults == [60.0, None, None]
    bench.cli([{"hang": True}])
    slow = [
        bench.run(executor=bench.executor(timeout=0.1)),
        bench.run(executor=bench.executor(timeout=600), timeout=0.1),
    ]
    assert [task.error for task in slow] == ["Task timed out after 0.1 seconds"] * 2


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"model": ""}, ValueError, "model must not be empty"),
        ({"model": "  "}, ValueError, "model must not be empty"),
        ({"model": 3}, TypeError, "model must be a str"),
        ({"timeout": 0}, ValueError, "timeout must be greater than 0"),
        ({"timeout": -1}, ValueError, "timeout must be greater than 0"),
        ({"timeout": "1"}, TypeError, "timeout must be"),
        ({"timeout": True}, TypeError, "timeout must be"),
        ({"cli_path": 3}, TypeError, "cli_path must be a path"),
        ({"working_directory": 3}, TypeError, "working_directory must be a path"),
        ({"reasoning_effort": 3}, TypeError, "reasoning_effort must be a str"),
        ({"provider": "http://a"}, TypeError, "provider must be a mapping"),
        ({"provider": {"type": "openai"}}, ValueError, "provider needs a base_url"),
        ({"env": {"A": 1}}, TypeError, "env"),
        ({"session_id": "mine"}, TypeError, "session_id: set by ttasks itself, and can't be given"),
        ({"github_token": "x", "on_permission_request": print}, TypeError, "github_token, on_permission_request: set"),
    ],
)
def test_a_wrong_option_is_refused_at_once(
    make: Callable[..., Any], options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        make(**options)


@pytest.mark.parametrize("make", MAKERS[1:])
@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"available_tools": "bash"}, TypeError, "available_tools must be a list of str"),
        ({"excluded_tools": [1]}, TypeError, "excluded_tools must be a list of str"),
        ({"permissions": "all"}, ValueError, "permissions must be one of"),
        ({"permissions": ["read("]}, ValueError, "is no rule"),
        ({"permissions": 3}, TypeError, "permissions must be"),
    ],
)
def test_a_wrong_option_of_agents_is_refused_at_once(
    make: Callable[..., Any], options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        make(**options)


@pytest.mark.parametrize("name", ["available_tools", "excluded_tools", "permissions"])
def test_a_prompt_takes_no_option_about_tools(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name}: a prompt is answered without tools"):
        make_copilot_prompt_handler(**{name: ["read"]})


def test_options_reach_the_session_and_what_was_asked_for_is_recorded(bench: Bench) -> None:
    executor = bench.executor(
        model="gpt-x",
        reasoning_effort="high",
        available_tools=["view", "bash"],
        excluded_tools=["web_fetch"],
        permissions=["read", "deny shell(rm *)"],
        provider=BYOK | {"base_url": "http://me:secret@127.0.0.1:9/v1?key=secret"},
        system_message={"mode": "append", "content": "Be brief."},
    )
    task = bench.run(executor=executor)
    sent = created(bench)
    assert (sent["model"], sent["reasoningEffort"]) == ("gpt-x", "high")
    assert (sent["availableTools"], sent["excludedTools"]) == (["view", "bash"], ["web_fetch"])
    assert sent["systemMessage"] == {"mode": "append", "content": "Be brief."}
    assert (sent["provider"]["apiKey"], sent["provider"]["wireApi"]) == ("sk-of-no-use", "completions")
    fact = opened(bench, task)
    assert (fact.model, fact.reasoning_effort) == ("gpt-x", "high")
    assert (fact.tools, fact.excluded_tools) == (("view", "bash"), ("web_fetch",))
    assert fact.permissions == ("read", "deny shell(rm *)")
    assert (fact.provider, fact.account) == ("http://127.0.0.1:9/v1", None)
    assert (fact.cli_version, fact.is_resumed) == ("1.0.102", False)
    assert fact.sdk_version
    assert "secret" not in str(bench.facts(task))


def test_the_working_directory_is_the_tasks_unless_it_is_an_option(bench: Bench) -> None:
    for name in ("of-task", "of-option", "work/relative"):
        (bench.folder / name).mkdir()
    tasks = [
        bench.run(),
        bench.run(cwd=str(bench.folder / "of-task")),
        bench.run(
            cwd=str(bench.folder / "of-task"), executor=bench.executor(working_directory=bench.folder / "of-option")
        ),
        bench.run(executor=bench.executor(working_directory="relative")),
    ]
    wanted = [str(bench.folder / name) for name in ("work", "of-task", "of-option", "work/relative")]
    assert [opened(bench, task).cwd for task in tasks] == wanted
    assert [sent["workingDirectory"] for sent in bench.asked("session.create")] == wanted


def test_a_session_option_that_the_sdk_does_not_know_fails_the_task(bench: Bench) -> None:
    task = bench.run(executor=bench.executor(no_such_option=1))
    assert task.status is TaskStatus.FAILED
    assert "no_such_option" in (task.error or "")
    assert bench.is_quiet()


# The environment.


def test_the_environment_names_the_model_endpoint(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPILOT_PROVIDER_BASE_URL", "http://127.0.0.1:9/v1")
    bench.run()
    assert created(bench)["provider"] == {
        "type": "openai", "wireApi": "completions", "baseUrl": "http://127.0.0.1:9/v1",
    }  # fmt: skip
    for name, value in (("TYPE", "azure"), ("API_KEY", "k"), ("BEARER_TOKEN", "b"), ("WIRE_API", "responses")):
        monkeypatch.setenv(f"COPILOT_PROVIDER_{name}", value)
    bench.run()
    assert created(bench)["provider"] == {
        "type": "azure", "wireApi": "responses", "baseUrl": "http://127.0.0.1:9/v1", "apiKey": "k", "bearerToken": "b",
    }  # fmt: skip
    bench.run(executor=bench.executor(provider=BYOK))
    assert created(bench)["provider"]["apiKey"] == "sk-of-no-use"


def test_the_tasks_own_variables_come_before_those_of_the_process(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COPILOT_PROVIDER_BASE_URL", "http://127.0.0.1:9/process")
    monkeypatch.setenv("COPILOT_MODEL", "of-process")
    monkeypatch.setenv("TTASKS_COPILOT_PERMISSIONS", "deny_all")
    own = {
        "COPILOT_PROVIDER_BASE_URL": "http://127.0.0.1:9/task",
        "COPILOT_MODEL": "of-task",
        "TTASKS_COPILOT_PERMISSIONS": "read, shell(git *)",
        "COPILOT_CLI_PATH": str(bench.cli_path),
    }
    task = bench.run(env=own, executor=bench.executor(cli_path=None))
    fact = opened(bench, task)
    assert (fact.provider, fact.model, fact.permissions) == (
        "http://127.0.0.1:9/task", "of-task", ("read", "shell(git *)"),
    )  # fmt: skip


def test_a_model_of_the_environment_takes_the_place_of_the_default_one_only(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run()
    monkeypatch.setenv("COPILOT_MODEL", "of-environment")
    bench.run()
    bench.run(executor=bench.executor(model="asked-for"))
    bench.executor().execute(Task.prompt("a"))
    bench.executor(model="gpt-5.4-mini").execute(Task.prompt("a"))
    models = [sent["model"] for sent in bench.asked("session.create")]
    assert models == ["gpt-5.5", "of-environment", "asked-for", "of-environment", "gpt-5.4-mini"]


def test_the_environment_names_the_cli(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPILOT_CLI_PATH", str(bench.cli_path))
    assert bench.run(executor=bench.executor(cli_path=None)).status is TaskStatus.SUCCEEDED
    monkeypatch.setenv("COPILOT_CLI_PATH", "/nope")
    assert bench.run(executor=bench.executor(cli_path=None)).status is TaskStatus.FAILED
    assert bench.run().status is TaskStatus.SUCCEEDED


def test_without_any_name_the_cli_is_looked_for_on_path(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{bench.cli_path.parent}:{os.environ['PATH']}")
    assert bench.run(executor=bench.executor(cli_path=None)).status is TaskStatus.SUCCEEDED


@pytest.mark.parametrize("name", ["COPILOT_GITHUB_TOKEN", "GH_TOKEN", "GITHUB_TOKEN"])
@pytest.mark.parametrize("whose", ["process", "task", "option"])
def test_a_token_signs_in_and_never_reaches_the_agents_shell(
    name: str, whose: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.cli([{"shell": "env > environment"}])
    variables = {name: "ghp_secret"}
    if whose == "process":
        monkeypatch.setenv(name, "ghp_secret")
    task = bench.run(
        env=variables if whose == "task" else None,
        executor=bench.executor(env=variables if whose == "option" else None),
    )
    assert created(bench)["gitHubToken"] == "ghp_secret"
    assert opened(bench, task).account == "token"
    shell = Path("environment").read_text()
    assert "ghp_secret" not in shell and "PATH=" in shell
    assert b"ghp_secret" not in bench.raw()


def test_of_several_tokens_copilots_own_comes_first_and_none_is_used_with_a_model_endpoint(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GITHUB_TOKEN", "GH_TOKEN", "COPILOT_GITHUB_TOKEN"):
        monkeypatch.setenv(name, f"of-{name}")
        bench.run()
    bench.run(executor=bench.executor(provider=BYOK))
    tokens = [sent.get("gitHubToken") for sent in bench.asked("session.create")]
    assert tokens == ["of-GITHUB_TOKEN", "of-GH_TOKEN", "of-COPILOT_GITHUB_TOKEN", None]


def test_the_agent_gets_little_of_the_environment_and_what_it_was_given(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.cli([{"shell": "env > environment"}])
    for name in ("AWS_SECRET_ACCESS_KEY", "ANYTHING", "COPILOT_PROVIDER_API_KEY", "COPILOT_PROVIDER_BEARER_TOKEN"):
        monkeypatch.setenv(name, "not-for-agents")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("TTASKS_LEDGER", "passed")
    monkeypatch.setenv("TTASKS_EXAMPLE", "not-for-agents")
    bench.run(env={"OWN": "of-task", "BOTH": "of-task"}, executor=bench.executor(env={"BOTH": "of-option"}))
    shell = dict(line.split("=", 1) for line in Path("environment").read_text().splitlines() if "=" in line)
    assert "not-for-agents" not in shell.values()
    wanted = {"OWN": "of-task", "BOTH": "of-option", "LC_ALL": "C.UTF-8", "TTASKS_LEDGER": "passed"}
    assert wanted.items() <= shell.items()
    assert {"PATH", "HOME", "COPILOT_HOME", "TTASKS_ATTEMPT", "TTASKS_RUNNER"} <= shell.keys()


@pytest.mark.parametrize("text", ["approve_evrything", "read("])
def test_permissions_in_the_environment_that_can_not_be_read_fail_the_task_before_anything_is_started(
    text: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTASKS_COPILOT_PERMISSIONS", text)
    task = bench.run()
    assert task.status is TaskStatus.FAILED
    assert "permissions: " in (task.error or "") and " is no " in (task.error or "")
    assert bench.asked("connect") == []


def test_permissions_of_the_environment_decide(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.cli([{"tool": "bash", "arguments": {"command": "ls"}}, {"tool": "view", "arguments": {"path": "a"}}])
    for text in ("", "read_only", "shell(ls)"):
        monkeypatch.setenv("TTASKS_COPILOT_PERMISSIONS", text)
        bench.run()
    rows = bench.rows("SELECT kind, decision, decided_by FROM permissions ORDER BY position")
    assert [tuple(row.values()) for row in rows] == [
        ("shell", "approved", "approve_all"),
        ("read", "approved", "approve_all"),
        ("shell", "denied", "read_only"),
        ("read", "approved", "read_only"),
        ("shell", "approved", "shell(ls)"),
        ("read", "denied", "no rule"),
    ]


def test_what_was_prompted_is_recorded(bench: Bench) -> None:
    task = bench.run("Do it, please")
    assert [fact.prompt for fact in bench.facts(task, AgentPrompted)] == ["Do it, please"]
