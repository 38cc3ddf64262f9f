"""What can go wrong has a word for programs and a sentence for people, in the error, the result and the ledger."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from copilots import BYOK, Bench
from ttasks import CopilotAgentSession, CopilotError, RetryPolicy, Task, TaskStatus
from ttasks.events.agent_facts import AgentErred
from ttasks.handlers.copilot.failures import failure


def fails(bench: Bench, **options: Any) -> CopilotError:
    """Run an agent that fails; return its error, after it was held against what is recorded."""
    task = Task.agent("Go")
    with pytest.raises(CopilotError) as failed:
        bench.executor(**options).execute(task)
    error = failed.value
    assert (task.status, task.error) == (TaskStatus.FAILED, str(error))
    assert task.result is not None
    assert (task.result.error_code, task.result.termination_reason) == (error.code, "handler")
    loaded = bench.store.tasks[task.id].result
    assert loaded is not None and loaded.error_code == error.code
    (row,) = bench.rows("SELECT error_code, exception, error FROM attempts WHERE task_id = ?", task.id)
    assert row == {"error_code": error.code, "exception": "ttasks.CopilotError", "error": str(error)}
    assert "\n" not in str(error)
    assert bench.is_quiet()
    return error


# The CLI.


def test_a_cli_that_is_not_there(bench: Bench) -> None:
    error = fails(bench, cli_path="/nope/copilot")
    assert error.code == "cli_missing"
    assert str(error).startswith("no Copilot CLI was found (/nope/copilot does not exist). Install it with ")


def test_no_cli_anywhere_is_no_reason_to_download_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(bench.folder))
    error = fails(bench, cli_path=None)
    assert error.code == "cli_missing"
    assert "none is named in cli_path= or COPILOT_CLI_PATH, the SDK has none, and none is on PATH" in str(error)
    assert not (bench.folder / ".cache").exists()


@pytest.mark.parametrize("what", ["folder", "not executable", "not a program", "no interpreter"])
def test_a_cli_that_can_not_be_run(what: str, bench: Bench) -> None:
    path = bench.folder / "copilot"
    if what == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"#!/no/such/interpreter\n" if what == "no interpreter" else b"\x00\x01\x02")
        path.chmod(0o644 if what == "not executable" else 0o755)
    if what == "not executable" and os.geteuid() == 0:
        assert not os.access(path, os.X_OK)
    error = fails(bench, cli_path=path)
    assert error.code == "cli_not_runnable"
    assert str(error).startswith("the Copilot CLI can't be run here: ")
    assert str(path) in str(error)


@pytest.mark.parametrize("start", ["exit", "kill", "garbage"])
def test_a_cli_that_ends_at_its_start_says_what_it_said(start: str, bench: Bench) -> None:
    bench.cli(start=start, stderr="glibc too old\n")
    error = fails(bench)
    assert error.code == "cli_not_runnable"
    assert "ended before it had answered" in str(error)
    assert start == "garbage" or "glibc too old" in str(error)


def test_a_cli_of_another_protocol(bench: Bench) -> None:
    bench.cli(protocol_version=9)
    error = fails(bench)
    assert error.code == "cli_incompatible"
    assert "this Copilot CLI and this SDK don't fit together" in str(error)
    assert "'ttasks doctor' says which" in str(error)


def test_a_cli_of_another_version_that_works_is_used(bench: Bench) -> None:
    bench.cli(version="1.0.64", has_send_and_wait=True)
    assert bench.run().status is TaskStatus.SUCCEEDED


def test_a_cli_that_dies_while_a_session_is_created(bench: Bench) -> None:
    bench.cli(create={"kill": True})
    error = fails(bench)
    assert error.code == "cli_crashed"
    assert "The task can be run again; see the CLI's log in COPILOT_HOME/logs" in str(error)


# Opening a session.


def test_nobody_is_signed_in(bench: Bench) -> None:
    bench.cli(login=None)
    error = fails(bench)
    assert error.code == "not_authenticated"
    assert str(error).startswith("Copilot is not signed in. Sign in with 'copilot login', set COPILOT_GITHUB_TOKEN, or")
    assert bench.asked("session.create") == []


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("GitHub token validation failed: 401 Unauthorized", "not_authenticated"),
        ('Model "gpt-x" is not available.', "model_unavailable"),
        ("session construction failed: Directory does not exist or cannot be accessed: /x", "bad_working_directory"),
        ("Custom agent 'nope' not found", "copilot_error"),
    ],
)
def test_a_session_that_is_refused(message: str, code: str, bench: Bench) -> None:
    bench.cli(create={"error": message})
    error = fails(bench)
    assert error.code == code
    assert message.rstrip(".") in str(error)


@pytest.mark.parametrize("is_file", [False, True])
def test_a_working_directory_that_is_none(is_file: bool, bench: Bench) -> None:
    if is_file:
        Path("file").touch()
    error = fails(bench, working_directory="file" if is_file else "nope")
    assert error.code == "bad_working_directory"
    assert re.search(r"the working directory /.*/(file|nope) does not exist, or is no folder", str(error))


# What the model, or who runs it, refuses.


@pytest.mark.parametrize(
    ("failure", "code", "text"),
    [
        (
            {"errorType": "quota", "statusCode": 402},
            "quota_exceeded",
            "the quota is used up: GitHub Copilot said: No way",
        ),
        ({"errorType": "query", "statusCode": 402}, "quota_exceeded", "Wait for the next period"),
        ({"errorType": "rate_limit", "statusCode": 429}, "rate_limited", "these are too many requests"),
        ({"errorType": "query", "statusCode": 429}, "rate_limited", "Try again later, with fewer at once"),
        ({"errorType": "authorization", "statusCode": 401}, "not_authenticated", "nobody is signed in who may do this"),
        ({"errorType": "authentication"}, "not_authenticated", "copilot login"),
        ({"errorType": "query", "statusCode": 404}, "model_unavailable", "the model can't be had"),
        ({"errorType": "context_limit", "statusCode": 400}, "context_limit", "too long for the model"),
        ({"errorType": "query", "statusCode": 503}, "provider_failed", "the model failed: GitHub Copilot said: No way"),
        ({"errorType": "query", "statusCode": 400}, "copilot_error", "Copilot failed: No way"),
        ({"errorType": "policy", "statusCode": 403}, "copilot_error", "Copilot failed: No way"),
        ({"errorType": "of_tomorrow"}, "copilot_error", "Copilot failed: No way"),
        (
            {"errorType": "query", "message": "Execution failed: No GitHub OAuth token or HMAC key provided"},
            "not_authenticated",
            "Copilot is not signed in",
        ),
        (
            {"errorType": "query", "message": "Failed to fetch: getaddrinfo ENOTFOUND api.test"},
            "provider_unreachable",
            "Check that it runs, and its address",
        ),
        (
            {"errorType": "query", "statusCode": 403, "message": "Permission denied by your organization"},
            "copilot_error",
            "Copilot failed: Permission denied by your organization",
        ),
        (
            {"errorType": "query", "message": "the working directory of the cloud exited with code 3"},
            "copilot_error",
            "Copilot failed: the working directory",
        ),
    ],
)
def test_a_turn_that_github_copilot_refuses(failure: dict[str, Any], code: str, text: str, bench: Bench) -> None:
    bench.cli([{"fail": {"message": "No way.", **failure}}])
    error = fails(bench)
    assert error.code == code
    assert text in str(error)
    assert ".." not in str(error)


@pytest.mark.parametrize(
    ("kind", "status", "code", "text"),
    [
        ("authentication", 401, "provider_refused", "the key was refused"),
        ("query", 403, "provider_refused", "Check COPILOT_PROVIDER_API_KEY or provider="),
        ("rate_limit", 429, "rate_limited", "too many requests"),
        ("query", 500, "provider_failed", "Try again later"),
        ("query", 404, "model_unavailable", "the address of the endpoint"),
        ("query", 400, "copilot_error", "Copilot failed"),
    ],
)
def test_a_turn_that_an_endpoint_of_ones_own_refuses(
    kind: str, status: int, code: str, text: str, bench: Bench
) -> None:
    bench.cli([{"fail": {"errorType": kind, "message": "No way", "statusCode": status}}])
    error = fails(bench, provider=BYOK)
    assert error.code == code
    assert text in str(error)
    assert code == "copilot_error" or f"the model endpoint {BYOK['base_url']} said: No way" in str(error)


def test_an_error_of_a_sub_agent_ends_nothing(bench: Bench) -> None:
    during = [{"retry": {"statusCode": 500, "message": "hiccup"}}]
    bench.cli(
        [{"tool": "task", "agent": "helper", "during": during, "error": "it gave up"}, {"say": "I did it myself"}]
    )
    task = bench.run()
    assert task.result is not None and task.result.output == "I did it myself"
    (erred,) = bench.facts(task, AgentErred)
    assert erred.agent


def test_a_turn_that_the_agent_ends_by_itself(bench: Bench) -> None:
    bench.cli([{"say": "Half"}, {"event": {"type": "session.idle", "data": {"aborted": True}, "ephemeral": True}}])
    error = fails(bench)
    assert error.code == "aborted"
    assert str(error) == "Copilot ended the turn before it was done. Look at what it did, and run it again"


def test_a_failed_task_can_be_tried_again_by_a_policy(bench: Bench) -> None:
    failing = {"fail": {"errorType": "rate_limit", "message": "Slow down", "statusCode": 429}}
    bench.cli(prompts={"Go": [failing]})
    policy = RetryPolicy(max_attempts=3, retry_on=lambda error: getattr(error, "code", "") == "rate_limited")
    task = Task.agent("Go")
    with pytest.raises(CopilotError):
        bench.executor().execute(task, retry_policy=policy)
    assert [row["error_code"] for row in bench.rows("SELECT error_code FROM attempts")] == ["rate_limited"] * 3


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Copilot CLI not found at /nope/copilot", "cli_missing"),
        ("[Errno 8] Exec format error: '/x/copilot'", "cli_not_runnable"),
        ("SDK protocol version mismatch: SDK supports 3-3, but server reports version 9", "cli_incompatible"),
        ("CLI process exited with code -9\nstderr: x", "cli_crashed"),
        ("Failed to load session events: Session not found: zzz", "session_not_found"),
        ("Not authenticated. Please authenticate first.", "not_authenticated"),
        ("Directory does not exist: /x", "bad_working_directory"),
        ("something odd", "copilot_error"),
        ("", "copilot_error"),
    ],
)
def test_what_the_sdk_raises_is_told_apart_by_its_text(text: str, code: str) -> None:
    error = failure(RuntimeError(text))
    assert error.code == code
    assert "\n" not in str(error)


def test_an_error_of_ours_stays_what_it_is() -> None:
    error = CopilotError("mine", code="quota_exceeded")
    assert failure(error) is error


def test_a_group_of_errors_is_told_by_what_is_in_it() -> None:
    group = ExceptionGroup("errors during CopilotClient.stop()", [RuntimeError("CLI process exited with code -9")])
    error = failure(group)
    assert error.code == "cli_crashed"
    assert "code -9" in str(error)


def test_a_session_whose_turn_is_refused_says_the_same(bench: Bench) -> None:
    bench.cli([{"fail": {"errorType": "quota", "message": "No more", "statusCode": 402}}])
    with CopilotAgentSession(cli_path=bench.cli_path) as session:
        with pytest.raises(CopilotError) as failed:
            session.send_and_wait("Go")
        assert failed.value.code == "quota_exceeded"
        assert session.send_and_wait("Again") == "Again"
