"""The flight recorder: what an agent did is facts, rows, and events on the bus."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from copilots import Bench
from doubles.scripted import Step
from processes import PATIENCE_S, until
from ttasks import (
    LedgerUnwritableError,
    SQLiteStore,
    Task,
    TaskStatus,
)
from ttasks.events.agent_facts import (
    AgentAnswered,
    AgentErred,
    AgentFact,
    AgentTurnEnded,
    FileEdit,
    ModelCalled,
    PermissionDecided,
    PermissionRequested,
    ToolCallEnded,
    ToolCallStarted,
)
from ttasks.events.facts import TaskOutput
from ttasks.handlers.context import DetachedPort
from ttasks.handlers.copilot.permissions import PermissionRequest
from ttasks.handlers.copilot.recorder import Recorder
from ttasks.log.verify import verify

BASH: Step = {"tool": "bash", "arguments": {"command": "make test", "description": "Run the tests"}}


def without_time(fact: Any) -> dict[str, Any]:
    """Return what a fact says that is not its attempt, its time or an id, and is not None."""
    ids = ("attempt", "at", "call", "request", "parent", "agent")
    return {name: value for name, value in asdict(fact).items() if name not in ids and value is not None}


def printed(bench: Bench, task: Task) -> str:
    chunks = [chunk for fact in bench.facts(task, TaskOutput) for chunk in fact.chunks]
    assert {stream for stream, _, _ in chunks} <= {"stdout"}
    return "".join(text for _, _, text in chunks)


# Answers.


@pytest.mark.parametrize("streaming", [True, False])
def test_answers_are_facts_and_output_whether_they_are_streamed_or_not(streaming: bool, bench: Bench) -> None:
    bench.cli([{**BASH, "text": "Let me see.\nFirst"}, {"say": "It is\nfine"}])
    task = bench.run(executor=bench.executor(streaming=streaming))
    answers = bench.facts(task, AgentAnswered)
    assert [without_time(fact) for fact in answers] == [
        {"text": "Let me see.\nFirst", "is_partial": False, "model": "gpt-5.5"},
        {"text": "It is\nfine", "is_partial": False, "model": "gpt-5.5"},
    ]
    assert printed(bench, task) == "Let me see.\nFirst\nIt is\nfine"
    assert bench.spoken("output") == ["Let me see.\n", "First\n", "It is\n", "fine"]
    assert task.result is not None and task.result.output == "It is\nfine"


def test_every_message_begins_a_line_of_its_own(bench: Bench) -> None:
    bench.cli([{**BASH, "text": "One\n"}, {**BASH, "text": "Two"}, {"say": "Three\n"}])
    assert printed(bench, bench.run()) == "One\nTwo\nThree\n"


def test_what_was_said_of_a_message_that_never_ended_is_partial(bench: Bench) -> None:
    bench.cli([{"say": "One two three", "during": [{"kill": True}]}])
    task = bench.run()
    assert [without_time(fact) for fact in bench.facts(task, AgentAnswered)] == [
        {"text": "One two three", "is_partial": True}
    ]
    assert printed(bench, task) == "One two three"
    assert task.result is not None and task.result.output == "One two three"


def test_output_is_durable_while_the_agent_still_speaks(bench: Bench) -> None:
    bench.cli([{"say": "One two", "during": [{"wait_for": str(bench.folder / "gate")}]}])
    task = Task.agent("Go")
    with bench.executor() as executor:
        future = executor.submit(task)
        until(lambda: printed(bench, task) == "One two" if task.status is TaskStatus.RUNNING else False)
        (bench.folder / "gate").touch()
        future.result(PATIENCE_S)


def test_words_that_stream_in_are_recorded_together(bench: Bench) -> None:
    words = "word " * 5000
    bench.cli([{"say": words}])
    task = bench.run()
    assert printed(bench, task) == words
    assert sum(len(fact.chunks) for fact in bench.facts(task, TaskOutput)) < 2500


def test_what_is_left_to_say_is_reported_whole_though_the_ledger_refuses_the_first() -> None:
    class Refusing(DetachedPort):
        def __init__(self) -> None:
            super().__init__()
            self.reported: list[str] = []

        def report(self, fact: AgentFact, *, at_once: bool = False) -> None:
            self.reported.append(type(fact).__name__)
            raise LedgerUnwritableError("the disk is full")

        def finished_printing(self) -> None:
            self.reported.append("finished")

    port = Refusing()
    recorder = Recorder(port, "t", "/", None)
    recorder._calls = {"1": "bash", "2": "bash"}
    with pytest.raises(LedgerUnwritableError, match="disk is full"):
        recorder.ended({"model_calls": 1})
    assert port.reported == ["ToolCallEnded", "ToolCallEnded", "AgentTurnEnded", "finished"]


# Tools.

TOOLS: list[tuple[Step, dict[str, Any], dict[str, Any]]] = [
    (
        {**BASH, "output": "ok\n"},
        {"tool": "bash", "arguments": BASH["arguments"]},
        {"outcome": "succeeded", "exit_code": 0, "output": "ok\n<shellId: 0 completed with exit code 0>"},
    ),
    (
        {**BASH, "exit_code": 3},
        {"tool": "bash", "arguments": BASH["arguments"]},
        {"outcome": "failed", "exit_code": 3, "output": "<shellId: 0 completed with exit code 3>"},
    ),
    (
        {"tool": "create", "arguments": {"path": "/a", "file_text": "x"}, "files": {"/a": "create"}, "output": "made"},
        {"tool": "create", "arguments": {"path": "/a", "file_text": "x"}},
        {"outcome": "succeeded", "output": "made", "files": (FileEdit("/a", "create"),)},
    ),
    (
        {"tool": "edit", "arguments": {"path": "/a"}, "files": {"/a": "edit", "/b": "delete"}, "output": "done"},
        {"tool": "edit", "arguments": {"path": "/a"}},
        {"outcome": "succeeded", "output": "done", "files": (FileEdit("/a", "edit"), FileEdit("/b", "delete"))},
    ),
    (
        {"tool": "view", "arguments": {"path": "/nope"}, "error": "no such file"},
        {"tool": "view", "arguments": {"path": "/nope"}},
        {"outcome": "failed", "error": "no such file"},
    ),
    (
        {"tool": "add", "server": "sums", "arguments": {"a": 1, "b": [1.5, None]}, "output": "2"},
        {"tool": "add", "server": "sums", "arguments": {"a": 1, "b": [1.5, None]}},
        {"outcome": "succeeded", "output": "2"},
    ),
    (
        {"tool": "list_bash", "asks": False, "output": "none"},
        {"tool": "list_bash", "arguments": {}},
        {"outcome": "succeeded", "output": "none"},
    ),
]


@pytest.mark.parametrize(("step", "start", "end"), TOOLS, ids=lambda value: value.get("tool", ""))
def test_a_tool_call_is_recorded_with_all_its_fields(
    step: Step, start: dict[str, Any], end: dict[str, Any], bench: Bench
) -> None:
    bench.cli([step])
    task = bench.run()
    assert task.status is TaskStatus.SUCCEEDED
    (started,), (ended,) = bench.facts(task, ToolCallStarted), bench.facts(task, ToolCallEnded)
    assert without_time(started) == start
    files = end.get("files")
    assert without_time(ended) == {**end, **({"files": tuple(asdict(edit) for edit in files)} if files else {})}
    assert started.call == ended.call
    (row,) = bench.rows("SELECT * FROM tool_calls")
    assert (row["tool"], row["status"], row["server"]) == (start["tool"], end["outcome"], start.get("server"))
    assert json.loads(row["arguments"]) == start["arguments"]
    assert (row["exit_code"], row["error"]) == (end.get("exit_code"), end.get("error"))
    assert json.loads(row["files"] or "null") == ([asdict(edit) for edit in files] if files else None)
    assert row["call"] == started.call


def test_tools_are_told_of_as_progress_and_not_recorded_as_such(bench: Bench) -> None:
    long = "x" * 500
    bench.cli(
        [
            {"tool": "bash", "arguments": {"command": "make\n  test"}},
            {"tool": "view", "arguments": {"path": "/a"}},
            {"tool": "bash", "arguments": {"command": long}},
            {"tool": "list_bash", "asks": False},
        ]
    )
    task = bench.run()
    assert bench.spoken("progress") == ["bash: make test", "view: /a", f"bash: {'x' * 119}…", "list_bash"]
    assert not [event for event in bench.store.history(task) if event.type == "TaskProgressed"]


def test_a_tool_that_is_denied_says_so(bench: Bench) -> None:
    bench.cli([BASH])
    task = bench.run(executor=bench.executor(permissions=lambda asked: "Not on a Friday."))
    (ended,) = bench.facts(task, ToolCallEnded)
    assert ended.outcome == "denied"
    assert "Not on a Friday." in ended.error
    assert bench.rows("SELECT status FROM tool_calls") == [{"status": "denied"}]


class City(BaseModel):
    name: str


async def weather(city: City) -> str:
    return f"sun in {city.name}"


def test_a_tool_of_the_callers_own_is_recorded_like_any(bench: Bench) -> None:
    from copilot import define_tool

    tool = define_tool(description="How the weather is")(weather)
    bench.cli([{"tool": "weather", "arguments": {"name": "Rome"}}])
    task = bench.run(executor=bench.executor(tools=[tool]))
    (started,), (ended,) = bench.facts(task, ToolCallStarted), bench.facts(task, ToolCallEnded)
    assert (started.tool, started.arguments) == ("weather", {"name": "Rome"})
    assert (ended.outcome, ended.output) == ("succeeded", "sun in Rome")
    assert [(fact.kind, fact.subject) for fact in bench.facts(task, PermissionRequested)] == [
        ("custom-tool", "weather")
    ]


def test_what_a_sub_agent_does_is_its_own(bench: Bench) -> None:
    during = [BASH, {"say": "Counted: 3"}]
    bench.cli([{"tool": "task", "agent": "counter", "during": during, "output": "Counted"}, {"say": "All done"}])
    task = bench.run()
    (agent,) = {fact.agent for fact in bench.facts(task, AgentFact) if getattr(fact, "agent", None)}
    outer, inner = bench.facts(task, ToolCallStarted)
    assert (outer.tool, outer.agent, inner.tool, inner.agent) == ("task", None, "bash", agent)
    assert inner.parent == outer.call
    assert [(fact.text, fact.agent) for fact in bench.facts(task, AgentAnswered)] == [
        ("Counted: 3", agent),
        ("All done", None),
    ]
    assert [fact.agent for fact in bench.facts(task, ModelCalled)] == [None, agent, agent, None]
    assert {fact.initiator for fact in bench.facts(task, ModelCalled) if fact.agent} == {"sub-agent"}
    assert [fact.agent for fact in bench.facts(task, PermissionRequested)] == [agent]
    assert task.result is not None and task.result.output == "All done"
    assert printed(bench, task) == "All done"
    (totals,) = bench.facts(task, AgentTurnEnded)
    assert totals.model_calls == 4
    assert [row["agent"] for row in bench.rows("SELECT agent FROM tool_calls ORDER BY position")] == [None, agent]


# Permissions.


@pytest.mark.parametrize(
    ("tool", "kind", "subject"),
    [
        (BASH, "shell", "make test"),
        ({"tool": "create", "arguments": {"path": "/a", "file_text": "b"}}, "write", "/a"),
        ({"tool": "view", "arguments": {"path": "/a"}}, "read", "/a"),
        ({"tool": "web_fetch", "arguments": {"url": "https://x.test"}}, "url", "https://x.test"),
        ({"tool": "add", "server": "sums", "arguments": {"a": 1}}, "mcp", "sums/add"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_request_and_who_decided_it_are_recorded(tool: Step, kind: str, subject: str, bench: Bench) -> None:
    bench.cli([tool])
    task = bench.run(executor=bench.executor(permissions=["*", "deny url"]))
    (asked,), (decided,) = bench.facts(task, PermissionRequested), bench.facts(task, PermissionDecided)
    assert (asked.kind, asked.subject) == (kind, subject)
    assert asked.request == decided.request
    assert asked.call == bench.facts(task, ToolCallStarted)[0].call
    by = "deny url" if kind == "url" else "*"
    assert (decided.decision, decided.by) == ("denied" if kind == "url" else "approved", by)
    (row,) = bench.rows("SELECT * FROM permissions")
    assert (row["kind"], row["subject"], row["decision"], row["decided_by"]) == (kind, subject, decided.decision, by)
    assert (row["feedback"], row["call"]) == (decided.feedback, asked.call)


def test_a_function_that_decides_gets_what_it_needs(bench: Bench) -> None:
    asked: list[PermissionRequest] = []
    bench.cli([BASH, {"tool": "add", "server": "sums", "arguments": {"a": 1}}])
    task = bench.run(executor=bench.executor(permissions=lambda one: asked.append(one) or True))
    shell, mcp = asked
    assert (shell.task_id, shell.kind, shell.subject, shell.intention) == (
        task.id,
        "shell",
        "make test",
        "Run the tests",
    )
    assert (shell.working_directory, shell.paths) == (str(Path.cwd()), ())
    assert (mcp.kind, mcp.subject, mcp.arguments) == ("mcp", "sums/add", {"a": 1})
    name = [fact.by for fact in bench.facts(task, PermissionDecided)]
    assert all(by.endswith("<lambda>") for by in name)


def test_a_request_is_decided_on_a_thread_that_keeps_nobody_waiting(bench: Bench) -> None:
    gate, heard = threading.Event(), []

    def ask(one: PermissionRequest) -> bool:
        heard.append(threading.current_thread().name)
        return gate.wait(PATIENCE_S)

    bench.cli([BASH, {"say": "Done"}])
    task = Task.agent("Go")
    with bench.executor(permissions=ask) as executor:
        future = executor.submit(task)
        until(lambda: heard)
        # What was asked for is there before it is decided.
        until(lambda: bench.rows("SELECT decision FROM permissions") == [{"decision": None}])
        gate.set()
        assert future.result(PATIENCE_S).output == "Done"
    assert heard != ["ttasks-copilot"]


def test_an_agent_hears_of_a_decision_only_after_it_was_recorded(bench: Bench) -> None:
    bench.cli([{**BASH, "during": [{"wait_for": str(bench.folder / "gate")}]}])
    task = Task.agent("Go")
    with bench.executor() as executor:
        future = executor.submit(task)
        answered = "session.permissions.handlePendingPermissionRequest"
        until(lambda: bench.asked(answered))
        assert bench.rows("SELECT decision FROM permissions") == [{"decision": "approved"}]
        (bench.folder / "gate").touch()
        future.result(PATIENCE_S)


def test_what_the_agents_own_policy_decided_is_recorded_as_that(bench: Bench) -> None:
    request = {"kind": "read", "path": "/a", "toolCallId": "call-1", "intention": "Look"}
    asked = {"requestId": "r-1", "permissionRequest": request, "resolvedByHook": True}
    decided = {"requestId": "r-1", "toolCallId": "call-1", "result": {"kind": "denied-by-rules", "rules": []}}
    bench.cli(
        [
            {"event": {"type": "permission.requested", "data": asked}},
            {"event": {"type": "permission.completed", "data": decided}},
        ]
    )
    task = bench.run()
    (fact,) = bench.facts(task, PermissionDecided)
    assert (fact.request, fact.decision, fact.by) == ("r-1", "denied", "copilot: denied-by-rules")


# Models and errors.


def test_a_call_of_a_model_is_recorded_with_all_its_fields(bench: Bench) -> None:
    usage = {
        "inputTokens": 11, "outputTokens": 12, "cacheReadTokens": 13, "cacheWriteTokens": 14, "reasoningTokens": 15,
        "cost": 0.33, "duration": 1500, "copilotUsage": {"totalNanoAiu": 7.0, "tokenDetails": []},
        "apiCallId": "call-1", "initiator": "user", "finishReason": "stop",
    }  # fmt: skip
    bench.cli([{"say": "Yes", "usage": usage}])
    task = bench.run()
    (called,) = bench.facts(task, ModelCalled)
    wanted = {
        "model": "gpt-5.5", "input_tokens": 11, "output_tokens": 12, "cache_read_tokens": 13, "cache_write_tokens": 14,
        "reasoning_tokens": 15, "duration": 1.5, "multiplier": 0.33, "nano_aiu": 7.0, "initiator": "user",
        "finish_reason": "stop",
    }  # fmt: skip
    assert without_time(called) == wanted
    assert called.call == "call-1"
    (row,) = bench.rows("SELECT * FROM model_calls")
    assert wanted.items() <= row.items()
    assert row["call"] == "call-1"


def test_with_an_endpoint_of_ones_own_nothing_is_said_about_credits(bench: Bench) -> None:
    from copilots import BYOK

    task = bench.run(executor=bench.executor(provider=BYOK))
    (totals,) = bench.facts(task, AgentTurnEnded)
    assert (totals.nano_aiu, totals.premium_requests, totals.requests) == (None, 0.0, 1)


def test_an_error_that_is_tried_again_and_one_that_ends_the_turn_are_told_apart(bench: Bench) -> None:
    failure = {"errorType": "query", "message": "The model broke", "statusCode": 500}
    bench.cli([{"retry": {"statusCode": 429, "message": "Slow down"}}, {"fail": failure}])
    task = bench.run()
    erred = bench.facts(task, AgentErred)
    assert [(fact.message, fact.is_retried, fact.status_code) for fact in erred] == [
        ("Slow down", True, 429),
        ("The model broke", True, 500),
        ("The model broke", False, 500),
    ]
    assert erred[-1].kind == "query"
    assert task.status is TaskStatus.FAILED


def test_events_of_a_kind_that_is_not_known_are_passed_over(bench: Bench) -> None:
    bench.cli([{"event": {"type": "model.of_tomorrow", "data": {"a": 1}}}, {"say": "Done"}])
    task = bench.run()
    assert task.status is TaskStatus.SUCCEEDED


def test_tables_are_what_replaying_gives(bench: Bench) -> None:
    bench.cli([*(step for step, _, _ in TOOLS), {"say": "Done"}])
    task = bench.run(executor=bench.executor(permissions=["*", "deny mcp"]))
    assert task.status is TaskStatus.SUCCEEDED
    counts = {
        table: bench.rows(f"SELECT count(*) AS n FROM {table}")[0]["n"]
        for table in ("tool_calls", "permissions", "model_calls")
    }
    assert counts == {"tool_calls": 7, "permissions": 6, "model_calls": 8}
    assert verify(bench.store._readers).problems == []
    with SQLiteStore(bench.ledger, read_only=True) as copy:
        assert copy.tasks[task.id].result == task.result
