"""What is kept of agents: the same live and loaded, without secrets; and nothing is done that can't be recorded."""

from __future__ import annotations

from typing import Any

import pytest

from copilots import Bench, pid_of_shell
from doubles.scripted import Step
from processes import PATIENCE_S, until
from ttasks import (
    CopilotAgentSession,
    LedgerUnwritableError,
    Task,
    TaskExecutor,
    TaskStatus,
    TaskType,
    make_copilot_agent_handler,
)
from ttasks.events.agent_facts import PermissionDecided
from ttasks.log.verify import verify

BASH: Step = {"tool": "bash", "arguments": {"command": "make test", "description": "Run the tests"}}


# What is loaded, and what is kept out.


@pytest.mark.parametrize("how", ["succeeds", "fails", "is cancelled"])
def test_a_loaded_result_is_the_live_one(how: str, bench: Bench) -> None:
    fail = {"fail": {"errorType": "quota", "message": "No more", "statusCode": 402}}
    shell, file = pid_of_shell(bench)
    last = {"succeeds": {"say": "Done\n"}, "fails": fail, "is cancelled": shell}[how]
    bench.cli([{**BASH, "text": "Let me"}, last])
    task = Task.agent("Go")
    with bench.executor() as executor:
        future = executor.submit(task)
        if how == "is cancelled":
            bench.wait_for_file(file)
            executor.cancel(task)
        future.exception(PATIENCE_S)
    live, loaded = task.result, bench.store.tasks[task.id].result
    assert live is not None and loaded is not None
    for name in (
        "status",
        "output",
        "error",
        "error_code",
        "termination_reason",
        "started_at",
        "finished_at",
        "duration",
    ):
        assert getattr(live, name) == getattr(loaded, name), name
    assert verify(bench.store._readers).is_clean


SECRET = "hunter2-is-the-password"


def test_secrets_are_masked_before_anything_is_written_or_published(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.cli(
        [
            {"tool": "bash", "arguments": {"command": f"echo {SECRET}", SECRET: [SECRET]}, "output": f"a{SECRET}b\n"},
            {"tool": "create", "arguments": {"path": f"/{SECRET}"}, "files": {f"/{SECRET}": "create"}},
            {"tool": "view", "arguments": {"path": "a"}, "error": f"no {SECRET}"},
            {"say": f"It is {SECRET}, no?", "during": [{"retry": {"statusCode": 500, "message": f"bad {SECRET}"}}]},
            {"fail": {"errorType": "query", "message": f"wrong {SECRET}", "statusCode": 400}},
        ]
    )
    store = bench.open_store(redact=["re:hunter2[a-z-]*"])
    executor = bench.executor(permissions=lambda asked: f"no {SECRET}" if asked.kind == "read" else True)
    folder = bench.folder / SECRET
    folder.mkdir()
    task = Task.agent(f"Say {SECRET}", title="secret", cwd=str(folder), env={"COPILOT_MODEL": SECRET})
    with pytest.raises(RuntimeError):
        executor.execute(task)
    store.close()
    assert b"hunter2" not in bench.raw()
    assert b"***" in bench.raw()
    said = [*bench.spoken("output"), *bench.spoken("progress"), *(event.error for event in bench.events)]
    assert said and not any("hunter2" in (text or "") for text in said)
    assert "hunter2" not in (task.result.output + (task.result.error or "") if task.result is not None else "hunter2")
    # The agent itself was told everything.
    assert bench.prompts() == [f"Say {SECRET}"]


def test_a_secret_in_a_rule_is_masked_as_well(bench: Bench) -> None:
    bench.cli([{"tool": "bash", "arguments": {"command": "ls"}}])
    bench.open_store(redact=["re:hunter2[a-z-]*"])
    task = bench.run(executor=bench.executor(permissions=["*", f"deny shell({SECRET})", "deny shell(ls)"]))
    assert task.status is TaskStatus.SUCCEEDED
    assert [fact.by for fact in bench.facts(task, PermissionDecided)] == ["deny shell(ls)"]
    assert b"hunter2" not in bench.raw()


def test_the_value_of_a_secret_variable_is_masked_as_well(bench: Bench) -> None:
    bench.cli([{"tool": "bash", "arguments": {"command": f"echo {SECRET}"}, "output": SECRET}, {"say": SECRET}])
    task = bench.run(env={"API_TOKEN": SECRET})
    assert task.status is TaskStatus.SUCCEEDED
    assert b"hunter2" not in bench.raw()
    assert bench.spoken("output") == ["***"]


def test_the_secrets_of_a_handler_are_masked_as_those_of_a_task_are(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {name: f"hunter2-{name}" for name in ("env", "key", "bearer", "header", "address", "proxy")}
    text = " ".join(secrets.values())
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{secrets['proxy']}@127.0.0.1:9")
    bench.cli([{"tool": "bash", "arguments": {"command": "env"}, "output": text}, {"say": f"I saw {text}"}])
    provider = {
        "type": "openai",
        "base_url": f"http://me:{secrets['address']}@127.0.0.1:9/v1",
        "api_key": secrets["key"],
        "bearer_token": secrets["bearer"],
        "headers": {"X-Auth": secrets["header"]},
    }
    options = {"provider": provider, "env": {"DB_PASSWORD": secrets["env"], "PLAIN": "of no interest"}}
    task = bench.run(executor=bench.executor(**options))
    assert (task.status, task.error) == (TaskStatus.SUCCEEDED, None)
    with CopilotAgentSession(cli_path=bench.cli_path, **options) as session:
        executor = bench.executor()
        executor.register(TaskType.AGENT, session.handler())
        assert bench.run(executor=executor).status is TaskStatus.SUCCEEDED
    assert b"hunter2" not in bench.raw()
    assert bench.raw().count(b"I saw *** *** *** *** *** ***") > 0
    assert set(bench.spoken("output")) == {"I saw *** *** *** *** *** ***"}


# A ledger that is lost.


def test_what_can_not_be_recorded_may_not_be_done(bench: Bench) -> None:
    during = [{"shell": f"touch {bench.folder / 'done'}"}]
    bench.cli([{"wait_for": str(bench.folder / "gate")}, {**BASH, "during": during}, {"say": "Done"}])
    task = Task.agent("Go")
    executor = bench.executor()
    with executor:
        future = executor.submit(task)
        until(bench.prompts)
        kept = bench.ledger.with_name("kept.db")
        bench.ledger.rename(kept)
        (bench.folder / "gate").touch()
        with pytest.raises(LedgerUnwritableError) as lost:
            future.result(PATIENCE_S)
        kept.rename(bench.ledger)
    assert not (bench.folder / "done").exists()
    answers = bench.asked("session.permissions.handlePendingPermissionRequest")
    assert [answer["result"]["kind"] for answer in answers] in ([], ["reject"])
    assert lost.value.result is task.result
    assert bench.is_quiet()
    bench.store.tasks.save(task)
    assert bench.store.tasks[task.id].status is task.status is TaskStatus.FAILED
    assert verify(bench.store._readers).is_clean


def test_an_agent_that_asks_for_nothing_is_ended_as_well_when_the_ledger_is_lost(bench: Bench) -> None:
    hang: list[Step] = [{"wait_for": str(bench.folder / "gate")}, {"say": "One"}, {"say": "Two"}, {"hang": True}]
    bench.cli(hang)
    task = Task.agent("Go")
    with bench.executor() as executor:
        future = executor.submit(task)
        until(bench.prompts)
        kept = bench.ledger.with_name("kept.db")
        bench.ledger.rename(kept)
        (bench.folder / "gate").touch()
        with pytest.raises(LedgerUnwritableError):
            future.result(PATIENCE_S)
        kept.rename(bench.ledger)
    assert bench.is_quiet()


def test_a_session_is_usable_after_a_ledger_was_lost_and_found(bench: Bench) -> None:
    bench.cli([{"wait_for": str(bench.folder / "gate")}, BASH, {"hang": True}])
    with CopilotAgentSession(cli_path=bench.cli_path) as session, bench.executor() as executor:
        executor.register(TaskType.AGENT, session.handler())
        future = executor.submit(Task.agent("Go"))
        until(bench.prompts)
        kept = bench.ledger.with_name("kept.db")
        bench.ledger.rename(kept)
        (bench.folder / "gate").touch()
        with pytest.raises(LedgerUnwritableError):
            future.result(PATIENCE_S)
        kept.rename(bench.ledger)
        assert executor.execute(Task.agent("Again")).output == "Again"
    assert bench.is_quiet()


def test_the_prompt_is_not_sent_before_it_is_recorded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.cli(create={})
    kept = bench.ledger.with_name("kept.db")
    executor = TaskExecutor(bench.store)

    def lose(context: Any) -> str:
        bench.ledger.rename(kept)
        return str(make_copilot_agent_handler(cli_path=bench.cli_path)(context))

    executor.register(TaskType.AGENT, lose)
    with pytest.raises(LedgerUnwritableError):
        executor.execute(Task.agent("Go"))
    kept.rename(bench.ledger)
    assert bench.prompts() == []
    assert bench.is_quiet()
