"""`CopilotAgentSession`: one conversation for many tasks, opened, shared and closed."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from copilots import Bench, pid_of_shell
from processes import PATIENCE_S, in_thread, until
from ttasks import (
    CopilotAgentSession,
    CopilotError,
    Task,
    TaskCancelled,
    TaskContext,
    TaskExecutor,
    TaskGraph,
    TaskStatus,
    TaskTimeoutError,
    TaskType,
)
from ttasks.events.agent_facts import AgentAborted, AgentPrompted, AgentSessionOpened, AgentTurnEnded
from ttasks.handlers.context import DetachedPort
from ttasks.handlers.copilot.driver import Waiting, _Work
from ttasks.handlers.copilot.loop import LoopThread


def session(bench: Bench, **options: Any) -> CopilotAgentSession:
    return CopilotAgentSession(cli_path=bench.cli_path, **options)


def sharing(bench: Bench, shared: CopilotAgentSession) -> TaskExecutor:
    """Return an executor whose AGENT tasks are turns of this session."""
    executor = bench.executor()
    executor.register(TaskType.AGENT, shared.handler())
    return executor


def gate(bench: Bench, name: str) -> tuple[dict[str, str], Callable[[], None]]:
    """Return a step that waits, and what lets it go on."""
    path = bench.folder / name
    return {"wait_for": str(path)}, path.touch


# Opening and closing.


def test_tasks_are_turns_of_one_conversation(bench: Bench) -> None:
    with session(bench) as shared:
        executor = sharing(bench, shared)
        first, second = bench.run("One", executor=executor), bench.run("Two", executor=executor)
        assert shared.send_and_wait("Three") == "Three"
        name = shared.session_id
    opened = [fact for task in (first, second) for fact in bench.facts(task, AgentSessionOpened)]
    assert [(fact.session, fact.is_resumed) for fact in opened] == [(name, False), (name, True)]
    assert bench.prompts() == ["One", "Two", "Three"]
    assert len(bench.asked("session.create")) == len(bench.asked("session.detach")) == 1
    assert [row["session"] for row in bench.rows("SELECT session FROM attempts")] == [name, name]
    assert bench.is_quiet()


def test_what_a_turn_cost_is_the_difference_to_the_turn_before(bench: Bench) -> None:
    bench.cli(
        [{"say": "a", "usage": {"inputTokens": 10}}], [{"retry": {"statusCode": 500}}, {"say": "b"}, {"say": "c"}]
    )
    with session(bench) as shared:
        executor = sharing(bench, shared)
        tasks = [bench.run(executor=executor) for _ in range(3)]
    totals = [fact for task in tasks for fact in bench.facts(task, AgentTurnEnded)]
    assert [fact.input_tokens for fact in totals] == [10, 200, 100]
    assert [fact.model_calls for fact in totals] == [1, 2, 1]
    assert [(fact.premium_requests, fact.requests) for fact in totals] == [(1.0, 1)] * 3
    assert [fact.nano_aiu for fact in totals] == [250_000_000.0, 500_000_000.0, 250_000_000.0]
    rows = bench.rows("SELECT input_tokens, premium_requests FROM attempts")
    assert [tuple(row.values()) for row in rows] == [(10, 1.0), (200, 1.0), (100, 1.0)]


def test_a_session_is_awaited_in_an_async_with(bench: Bench) -> None:
    async def talk() -> list[str]:
        async with session(bench) as shared:
            assert shared.session_id
            return [await shared.send_and_wait("One"), await shared.send_and_wait("Two", timeout=60)]

    assert asyncio.run(talk()) == ["One", "Two"]
    assert bench.is_quiet()


def test_turns_asked_for_at_once_in_an_async_with_are_taken_one_after_the_other(bench: Bench) -> None:
    async def talk() -> list[str]:
        async with session(bench) as shared:
            return list(await asyncio.gather(*(shared.send_and_wait(f"{number}") for number in range(4))))

    assert asyncio.run(talk()) == ["0", "1", "2", "3"]
    assert sorted(bench.prompts()) == ["0", "1", "2", "3"]


def test_a_handler_needs_a_session_that_is_open_in_a_with(bench: Bench) -> None:
    shared = session(bench)
    with pytest.raises(RuntimeError, match="requires an active sync context"):
        shared.handler()

    async def talk() -> None:
        async with shared:
            with pytest.raises(RuntimeError, match="requires an active sync context"):
                shared.handler()

    asyncio.run(talk())
    with shared:
        handler = shared.handler()
    with pytest.raises(RuntimeError, match="requires an active sync context"):
        shared.handler()
    with pytest.raises(RuntimeError, match="not active"):
        handler(TaskContext(Task.agent("late")))
    assert bench.is_quiet()


def test_an_open_session_can_not_be_opened_again_and_goes_on(bench: Bench) -> None:
    async def open_again(shared: CopilotAgentSession) -> None:
        async with shared:
            pass

    with session(bench) as shared:
        with pytest.raises(RuntimeError, match="already active"):
            shared.__enter__()
        with pytest.raises(RuntimeError, match="already active"):
            asyncio.run(open_again(shared))
        assert shared.send_and_wait("Still there?") == "Still there?"
        assert shared.handler()(TaskContext(Task.agent("Really?"))) == "Really?"
    assert bench.is_quiet()


def test_a_closed_session_is_not_active(bench: Bench) -> None:
    shared = session(bench)
    for use in (lambda: shared.session_id, lambda: shared.send_and_wait("Hello?")):
        with pytest.raises(RuntimeError, match="not active"):
            use()
    with shared:
        pass
    for use in (lambda: shared.session_id, lambda: shared.send_and_wait("Hello?")):
        with pytest.raises(RuntimeError, match="not active"):
            use()


def test_a_closed_session_can_be_opened_again_as_another_conversation(bench: Bench) -> None:
    shared, names = session(bench), []
    for _ in range(2):
        with shared:
            names.append(shared.session_id)
            assert shared.send_and_wait("Hello") == "Hello"
    assert len(set(names)) == 2
    assert bench.is_quiet()


@pytest.mark.parametrize("start", ["exit", "kill", "garbage"])
def test_of_a_session_that_can_not_be_opened_nothing_is_left(start: str, bench: Bench) -> None:
    bench.cli(start=start, stderr="glibc too old\n")
    shared = session(bench)
    with pytest.raises(CopilotError) as failed, shared:
        pass
    assert failed.value.code == "cli_not_runnable"
    assert bench.is_quiet()
    bench.cli()
    with shared:
        assert shared.send_and_wait("Now?") == "Now?"


@pytest.mark.parametrize(
    "create", [{"error": "401 Unauthorized: token validation failed"}, {"kill": True}], ids=["refused", "killed"]
)
def test_of_a_session_that_can_not_be_created_nothing_is_left(create: dict[str, Any], bench: Bench) -> None:
    bench.cli(create=create)
    with pytest.raises(CopilotError) as failed, session(bench):
        pass
    assert failed.value.code == ("not_authenticated" if "error" in create else "cli_crashed")
    assert bench.is_quiet()


def test_closing_says_that_the_cli_had_died_meanwhile(bench: Bench) -> None:
    with pytest.raises(CopilotError) as died, session(bench) as shared:
        shared.send_and_wait("Hello")
        kill_cli(bench)
    assert died.value.code == "cli_crashed"
    assert bench.is_quiet()


def test_closing_says_it_also_where_it_was_noticed_before(bench: Bench) -> None:
    with pytest.raises(CopilotError) as died, session(bench) as shared:
        kill_cli(bench)
        conversation = shared._active()._conversation
        assert conversation is not None
        until(lambda: conversation.error)
    assert died.value.code == "cli_crashed"
    assert bench.is_quiet()


def test_closing_disturbs_no_other_error(bench: Bench) -> None:
    with pytest.raises(ValueError, match="mine") as raised, session(bench):
        kill_cli(bench)
        raise ValueError("mine")
    assert any("closing the Copilot session failed as well" in note for note in raised.value.__notes__)
    assert bench.is_quiet()


def test_a_session_that_is_closed_while_an_agent_works_ends_its_turn(bench: Bench) -> None:
    shell, name = pid_of_shell(bench)
    bench.cli([{"tool": "bash", "arguments": {"command": "x"}, "during": [shell]}])
    with bench.executor() as executor:
        with session(bench) as shared:
            executor.register(TaskType.AGENT, shared.handler())
            task = Task.agent("Go")
            future = executor.submit(task)
            bench.wait_for_file(name)
        with pytest.raises(CopilotError) as ended:
            future.result(PATIENCE_S)
    assert ended.value.code == "aborted"
    assert task.status is TaskStatus.FAILED
    assert bench.is_quiet()


def test_a_task_of_a_session_whose_cli_has_died_fails_and_so_does_the_next(bench: Bench) -> None:
    with pytest.raises(CopilotError, match="ended in the middle"), session(bench) as shared:
        executor = sharing(bench, shared)
        kill_cli(bench)
        tasks = [bench.run(executor=executor) for _ in range(2)]
    first, second = [task.result.error_code for task in tasks if task.result is not None]
    assert (first in ("cli_crashed", "session_ended"), second) == (True, "session_ended")
    assert "open a new one" in (tasks[1].error or "")
    assert bench.facts(tasks[1], AgentSessionOpened, AgentPrompted) == []
    assert bench.is_quiet()


def kill_cli(bench: Bench) -> None:
    for process in bench.processes():
        os.kill(process.pid, signal.SIGKILL)
    until(lambda: not bench.processes())


# Prompts by hand.


@pytest.mark.parametrize(
    ("prompt", "timeout", "error", "text"),
    [
        (None, None, TypeError, "prompt must be a str"),
        (b"Hello", None, TypeError, "prompt must be a str"),
        ("Hello", 0, ValueError, "timeout must be greater than 0"),
        ("Hello", -3, ValueError, "timeout must be greater than 0"),
        ("Hello", "1", TypeError, "timeout must be"),
        ("Hello", True, TypeError, "timeout must be"),
    ],
)
def test_a_wrong_prompt_or_timeout_is_refused_before_anything_is_sent(
    prompt: Any, timeout: Any, error: type[Exception], text: str, bench: Bench
) -> None:
    with session(bench) as shared, pytest.raises(error, match=text):
        shared.send_and_wait(prompt, timeout=timeout)
    assert bench.prompts() == []


def test_a_prompt_that_takes_too_long_is_ended_and_the_session_goes_on(bench: Bench) -> None:
    bench.cli([{"say": "Half", "during": [{"hang": True}]}], [{"hang": True}])
    with session(bench, timeout=0.1) as shared:
        with pytest.raises(TaskTimeoutError, match=r"Task timed out after 0\.05 seconds") as late:
            shared.send_and_wait("First", timeout=0.05)
        assert late.value.code == "timeout"
        with pytest.raises(TaskTimeoutError, match=r"after 0\.1 seconds"):
            shared.send_and_wait("Second")
        assert shared.send_and_wait("Third", timeout=60) == "Third"
    assert bench.is_quiet()


def test_an_awaited_prompt_that_is_cancelled_ends_its_turn(bench: Bench) -> None:
    shell, name = pid_of_shell(bench)
    bench.cli([shell])

    async def talk() -> str:
        async with session(bench) as shared:
            asked = asyncio.ensure_future(shared.send_and_wait("First"))
            await asyncio.to_thread(bench.wait_for_file, name)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            assert len(bench.asked("session.abort")) == 1
            return await shared.send_and_wait("Second")

    assert asyncio.run(talk()) == "Second"
    assert bench.is_quiet()


def test_an_awaited_prompt_that_is_cancelled_before_its_turn_is_never_sent(bench: Bench) -> None:
    step, go = gate(bench, "gate")
    bench.cli([step, {"say": "First"}])

    async def talk() -> str:
        async with session(bench) as shared:
            first = asyncio.ensure_future(shared.send_and_wait("One"))
            await asyncio.to_thread(until, bench.prompts)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await shared.send_and_wait("Two")
            go()
            return await first

    assert asyncio.run(talk()) == "First"
    assert bench.prompts() == ["One"]
    assert bench.is_quiet()


# Turns.


def test_handlers_that_are_called_at_once_take_turns(bench: Bench) -> None:
    step, go = gate(bench, "gate")
    bench.cli([{"say": "First"}, step])
    with session(bench) as shared, sharing(bench, shared) as executor:
        tasks = [Task.agent(name) for name in ("a", "b", "c", "d")]
        futures = [executor.submit(task) for task in tasks]
        until(lambda: sum(event.type == "started" for event in bench.events) == 4)
        until(lambda: len(bench.prompts()) == 1)
        go()
        outputs = [future.result(PATIENCE_S).output for future in futures]
    assert sorted(outputs) == sorted(["First", *({"a", "b", "c", "d"} - {bench.prompts()[0]})])
    assert sorted(bench.prompts()) == ["a", "b", "c", "d"]
    # Nobody was sent anything before the turn before had ended.
    log = [request.get("method") for request in requests(bench)]
    assert [name for name in log if name in ("session.send", "session.usage.getMetrics")] == [
        "session.send", "session.usage.getMetrics",
    ] * 4  # fmt: skip


def requests(bench: Bench) -> list[dict[str, Any]]:
    from doubles.scripted import requests_in

    return requests_in(bench.home)


def test_a_task_that_is_cancelled_while_it_waits_for_its_turn_is_never_sent(bench: Bench) -> None:
    step, go = gate(bench, "gate")
    bench.cli([step, {"say": "First"}])
    with session(bench) as shared, sharing(bench, shared) as executor:
        first, second = Task.agent("a"), Task.agent("b")
        running = executor.submit(first)
        until(bench.prompts)
        waiting = executor.submit(second)
        until(lambda: second.status is TaskStatus.RUNNING)
        executor.cancel(second)
        with pytest.raises(TaskCancelled):
            waiting.result(PATIENCE_S)
        assert first.status is TaskStatus.RUNNING
        go()
        assert running.result(PATIENCE_S).output == "First"
    assert bench.prompts() == ["a"]
    assert bench.facts(second, AgentSessionOpened) == []


def test_the_wait_for_a_turn_does_not_count(bench: Bench) -> None:
    step, go = gate(bench, "gate")
    bench.cli([step], [{"say": "Second"}])
    with session(bench) as shared, sharing(bench, shared) as executor:
        running = executor.submit(Task.agent("a"))
        until(bench.prompts)
        second = Task.agent("b", timeout=1)
        waiting = executor.submit(second)
        until(lambda: second.status is TaskStatus.RUNNING)
        waited_since = time.monotonic()
        until(lambda: time.monotonic() - waited_since > 1.1)
        go()
        running.result(PATIENCE_S)
        assert waiting.result(PATIENCE_S).output == "Second"


def test_cancelling_a_task_aborts_its_turn_and_the_session_goes_on(bench: Bench) -> None:
    shell, name = pid_of_shell(bench)
    bench.cli([{"say": "First"}], [{"tool": "bash", "arguments": {"command": "x"}, "during": [shell]}])
    with session(bench) as shared, sharing(bench, shared) as executor:
        bench.run("One", executor=executor)
        task = Task.agent("Two")
        future = executor.submit(task)
        pid = bench.wait_for_file(name)
        executor.cancel(task)
        with pytest.raises(TaskCancelled):
            future.result(PATIENCE_S)
        assert pid.strip() not in {str(process.pid) for process in bench.processes()}
        assert task.status is TaskStatus.CANCELLED
        assert [fact.why for fact in bench.facts(task, AgentAborted)] == ["cancelled"]
        last = bench.run("Three", executor=executor)
        assert last.result is not None and last.result.output == "Three"
    assert bench.is_quiet()


def test_a_timeout_of_a_task_wins_over_that_of_the_session(bench: Bench) -> None:
    bench.cli([{"hang": True}])
    with session(bench, timeout=600) as shared:
        task = bench.run(executor=sharing(bench, shared), timeout=0.05)
    assert task.result is not None and task.result.termination_reason == "timeout"
    assert task.error == "Task timed out after 0.05 seconds"


def test_a_failed_turn_leaves_the_session_usable(bench: Bench) -> None:
    bench.cli([{"fail": {"errorType": "query", "message": "odd", "statusCode": 400}}])
    with session(bench) as shared:
        executor = sharing(bench, shared)
        assert bench.run("One", executor=executor).status is TaskStatus.FAILED
        assert bench.run("Two", executor=executor).status is TaskStatus.SUCCEEDED


def test_a_session_serves_a_graph(bench: Bench) -> None:
    graph = TaskGraph(title="shared")
    first = graph.add(Task.agent("plan"))
    graph.add(Task.bash("echo built"), after=[first])
    graph.add(Task.agent("review"), after=[first])
    graph.add(Task.agent("report"), after=list(graph), finally_=True)
    with session(bench) as shared:
        graph.run(sharing(bench, shared))
    assert graph.ok
    assert bench.prompts() == ["plan", "review", "report"]
    assert len(bench.asked("session.create")) == 1


def test_two_sessions_at_once_do_not_meet(bench: Bench) -> None:
    with session(bench) as one, session(bench) as other:
        assert one.session_id != other.session_id
        answers = [in_thread(lambda: one.send_and_wait("a")), in_thread(lambda: other.send_and_wait("b"))]
        assert [answer.result(PATIENCE_S) for answer in answers] == ["a", "b"]
    assert bench.is_quiet()


# Subscribers.


def test_subscribers_hear_every_event_until_they_unsubscribe(bench: Bench) -> None:
    from_the_start: list[str] = []
    later: list[str] = []
    with session(bench, on_event=lambda event: from_the_start.append(event.type.value)) as shared:
        unsubscribe = shared.on(lambda event: later.append(event.type.value))
        shared.send_and_wait("One")
        unsubscribe()
        unsubscribe()
        heard = list(later)
        shared.send_and_wait("Two")
    assert from_the_start[0] == "session.start"
    assert from_the_start.count("user.message") == from_the_start.count("session.idle") == 2
    assert heard == later
    assert later.count("user.message") == later.count("assistant.message") == 1


def test_a_function_may_subscribe_twice_and_each_subscription_ends_by_itself(bench: Bench) -> None:
    heard: list[str] = []

    def hear(event: Any) -> None:
        if event.type.value == "user.message":
            heard.append(event.data.content)

    with session(bench) as shared:
        first = shared.on(hear)
        shared.on(hear)
        shared.send_and_wait("One")
        first()
        first()
        shared.send_and_wait("Two")
    assert heard == ["One", "One", "Two"]


@pytest.mark.parametrize("wrong", [None, 3, "print"])
def test_a_subscriber_has_to_be_callable(wrong: Any) -> None:
    with pytest.raises(TypeError, match="handler must be callable"):
        CopilotAgentSession().on(wrong)
    if wrong is not None:
        with pytest.raises(TypeError, match="handler must be callable"):
            CopilotAgentSession(on_event=wrong)


def test_what_subscribers_raise_is_kept_and_disturbs_nobody(bench: Bench) -> None:
    heard: list[str] = []

    def complain(event: Any) -> None:
        if event.type.value == "assistant.message":
            raise ValueError(event.data.content)

    with session(bench, on_event=complain) as shared:
        shared.on(lambda event: heard.append(event.type.value))
        assert shared.send_and_wait("Boo") == "Boo"
        errors = shared.event_errors
        assert [(type(error), str(error)) for error in errors] == [(ValueError, "Boo")]
        errors.clear()
    assert len(shared.event_errors) == 1
    assert "assistant.message" in heard


def test_a_subscriber_that_asks_the_session_something_is_refused_rather_than_waiting_for_itself(bench: Bench) -> None:
    with session(bench) as shared:

        def ask(event: Any) -> None:
            if event.type.value == "assistant.message":
                shared.send_and_wait("And you?")

        shared.on(ask)
        assert shared.send_and_wait("How are you?") == "How are you?"
        (error,) = shared.event_errors
    assert "can't be asked by a subscriber" in str(error)


def test_no_thread_of_a_session_outlives_it(bench: Bench) -> None:
    before = set(threading.enumerate())
    with session(bench) as shared:
        shared.send_and_wait("Hello")
        assert "ttasks-copilot" in {thread.name for thread in threading.enumerate()}
    until(lambda: set(threading.enumerate()) <= before)


def test_a_subscriber_that_asks_for_the_id_too_early_is_told_so(bench: Bench) -> None:
    found: list[str] = []
    shared = CopilotAgentSession(cli_path=bench.cli_path, on_event=lambda _: found.append(shared.session_id))
    with shared:
        shared.send_and_wait("Hello")
        assert set(found) == {shared.session_id}
    assert all(isinstance(error, RuntimeError) and "not active" in str(error) for error in shared.event_errors)


def test_a_session_that_is_closed_while_it_takes_up_another_ends_that(bench: Bench) -> None:
    bench.cli(resume={"hang": True})
    with session(bench) as shared:
        driver = shared._active()
        asked = in_thread(lambda: driver.turn(DetachedPort(), "t", "Go", Waiting(DetachedPort(), None), "another"))
        until(lambda: bench.asked("session.resume"))
    with pytest.raises(CopilotError, match="was closed before the agent was done"):
        asked.result(PATIENCE_S)
    assert bench.prompts() == []
    assert bench.is_quiet()


def test_nothing_is_asked_of_a_loop_that_is_about_to_end() -> None:
    thread = LoopThread()
    thread.close()
    with pytest.raises(RuntimeError, match="was closed"):
        thread.soon(lambda: None)

    async def work() -> None:
        raise AssertionError

    with pytest.raises(RuntimeError, match="was closed"):
        _Work(thread, work())


def test_what_was_asked_of_a_loop_just_before_its_end_is_cancelled() -> None:
    thread = LoopThread()
    held, begun = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        held.wait(PATIENCE_S)

    thread.soon(hold)
    assert begun.wait(PATIENCE_S)
    work = _Work(thread, asyncio.sleep(1000))
    closing = in_thread(thread.close)
    held.set()
    closing.result(PATIENCE_S)
    assert work.is_done
    with pytest.raises(asyncio.CancelledError):
        work.result()
