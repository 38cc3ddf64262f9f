"""What an agent did, as its facts tell it: calls, requests and models, however odd what the agent says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings

from strategies import AT, created, ended, started, task_histories
from ttasks.events import agent_facts as a
from ttasks.events import facts as f
from ttasks.events.agent_facts import FileEdit
from ttasks.events.codec import FACT_TYPES
from ttasks.events.envelope import RecordedEvent
from ttasks.log.projection import TaskFold, agent_row
from ttasks.state.agent import AGENT_FACTS, AgentState, ModelCallState, PermissionState, ToolCallState
from ttasks.state.task import AttemptState, snapshot
from ttasks.state.task import apply as apply_task

LATER = AT + timedelta(seconds=2.5)
ENDS = (f.TaskSucceeded, f.TaskFailed, f.TaskCancelled, f.TaskInterrupted)


def call(id_: str = "c1", attempt: int = 1, **more: Any) -> a.ToolCallStarted:
    return a.ToolCallStarted(attempt, AT, id_, **{"tool": "bash", **more})


def call_ended(id_: str = "c1", attempt: int = 1, **more: Any) -> a.ToolCallEnded:
    return a.ToolCallEnded(attempt, LATER, id_, **{"outcome": "succeeded", **more})


def request(id_: str = "r1", attempt: int = 1, **more: Any) -> a.PermissionRequested:
    return a.PermissionRequested(attempt, AT, id_, **{"kind": "shell", "subject": "ls", **more})


def decided(id_: str = "r1", attempt: int = 1, **more: Any) -> a.PermissionDecided:
    return a.PermissionDecided(attempt, LATER, id_, **{"decision": "approved", "by": "allow ls", **more})


def recorded(position: int, fact: f.Fact) -> RecordedEvent:
    return RecordedEvent(position, "task-t", position, AT, 1, None, fact, b"")


def fold(facts: Sequence[f.Fact]) -> tuple[TaskFold, list[AgentState]]:
    """Return the fold of a task's facts, and the states of what its agent did; positions are versions."""
    task, states = TaskFold("t"), {}
    for position, fact in enumerate(facts, 1):
        task.apply(recorded(position, fact))
        if task.conversation is not None:
            states.update({state.position: state for state in task.conversation.take()})
    return task, [states[position] for position in sorted(states)]


def during(*facts: f.Fact) -> list[AgentState]:
    """Return what an agent did in the first attempt of a task, which still runs: its first fact is event 3."""
    return fold([created(), started(), *facts])[1]


def of_attempt(*facts: f.Fact) -> AttemptState:
    """Return the first attempt of a task."""
    attempt = fold([created(), started(), *facts])[0].attempt
    assert attempt is not None
    return attempt


# --- tool calls -----------------------------------------------------------------------------------------------------


def test_a_tool_call_runs_from_its_beginning() -> None:
    arguments = {"command": "ls", "deep": [{"x": None}]}

    (found,) = during(call(arguments=arguments, server="files", parent="c0", agent="explore"))

    assert found == ToolCallState(
        3, "t", 1, "c1", "bash", "running", AT, arguments, "files", "c0", "explore",
    )  # fmt: skip


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "denied", "aborted"])
def test_a_tool_call_ends_as_its_agent_says(outcome: str) -> None:
    files = (FileEdit("/a", "create"), FileEdit("/b", "edit"))

    (found,) = during(call(), call_ended(outcome=outcome, exit_code=3, output="out", error="no", files=files))

    begun = ToolCallState(3, "t", 1, "c1", "bash", outcome, AT)  # type: ignore[arg-type]
    assert found == replace(
        begun, finished_at=LATER, duration=2.5, exit_code=3, error="no", files=files, end_position=4
    )  # fmt: skip


def test_calls_that_run_at_the_same_time_end_each_by_its_id() -> None:
    one, two = during(call("c1"), call("c2"), call_ended("c1"), call_ended("c2", outcome="failed"))

    assert isinstance(one, ToolCallState)
    assert isinstance(two, ToolCallState)
    assert [(one.call, one.status, one.end_position), (two.call, two.status, two.end_position)] == [
        ("c1", "succeeded", 5),
        ("c2", "failed", 6),
    ]


@pytest.mark.parametrize("end", ENDS)
def test_of_a_call_whose_attempt_ended_while_it_ran_nothing_is_known(end: type[f.AttemptEnd]) -> None:
    states = during(call("c1"), call("c2"), call_ended("c2"), request("r1"), request("r2"), decided("r2"), ended(end))

    assert [getattr(state, "status", None) or getattr(state, "decision", None) for state in states] == [
        "unknown",
        "succeeded",
        "unanswered",
        "approved",
    ]
    assert isinstance(states[0], ToolCallState)
    assert (states[0].finished_at, states[0].duration, states[0].end_position) == (None, None, None)


def test_a_task_that_is_imported_while_it_runs_has_no_call_that_runs() -> None:
    there = apply_task(None, created(), task_id="t", version=1)

    (found,) = during(call(), f.TaskImported(snapshot(there)))

    assert isinstance(found, ToolCallState)
    assert found.status == "unknown"


def test_an_end_without_a_beginning_changes_nothing() -> None:
    assert during(call_ended("c1"), decided("r1")) == []


def test_the_second_end_of_a_call_changes_nothing() -> None:
    (found,) = during(call(), call_ended(), call_ended(outcome="failed"))

    assert isinstance(found, ToolCallState)
    assert found.status == "succeeded"


def test_where_an_id_begins_again_nothing_is_known_of_the_first() -> None:
    first, second, asked, again = during(
        call(tool="a"), call(tool="b"), request(subject="a"), request(subject="b"), call_ended(), decided()
    )

    assert isinstance(first, ToolCallState) and isinstance(second, ToolCallState)
    assert [(first.tool, first.status), (second.tool, second.status)] == [("a", "unknown"), ("b", "succeeded")]
    assert isinstance(asked, PermissionState) and isinstance(again, PermissionState)
    assert [(asked.subject, asked.decision), (again.subject, again.decision)] == [
        ("a", "unanswered"),
        ("b", "approved"),
    ]


# --- permissions ----------------------------------------------------------------------------------------------------


def test_nobody_has_decided_a_request_yet() -> None:
    (found,) = during(request(intention="to look", call="c1", agent="explore"))

    assert found == PermissionState(3, "t", 1, "r1", "shell", "ls", AT, "c1", "to look", "explore")


def test_a_decision_says_by_what_and_what_the_agent_was_told() -> None:
    (found,) = during(request(), decided(decision="denied", by="never rm", feedback="ask me first"))

    undecided = PermissionState(3, "t", 1, "r1", "shell", "ls", AT)
    assert found == replace(
        undecided, decision="denied", decided_by="never rm", feedback="ask me first", decided_at=LATER
    )


# --- models ---------------------------------------------------------------------------------------------------------


def test_a_call_of_a_model_holds_what_its_fact_says() -> None:
    said = {
        "model": "m", "input_tokens": 1, "output_tokens": 2, "cache_read_tokens": 3, "cache_write_tokens": 4,
        "reasoning_tokens": 5, "duration": 0.5, "multiplier": 1.0, "nano_aiu": 7.5, "initiator": "agent",
        "finish_reason": "stop", "call": "x", "agent": "explore",
    }  # fmt: skip

    (found,) = during(a.ModelCalled(1, AT, **said))  # type: ignore[arg-type]

    assert isinstance(found, ModelCallState)
    assert vars(found) == {"position": 3, "task_id": "t", "attempt": 1, "called_at": AT, **said}
    assert set(vars(found)) == {field.name for field in fields(ModelCallState)}


# --- attempts -------------------------------------------------------------------------------------------------------


def test_an_attempt_knows_its_conversation_and_what_it_cost() -> None:
    opened = a.AgentSessionOpened(1, AT, "s-1", is_resumed=False, model="gpt")
    turn = a.AgentTurnEnded(1, AT, input_tokens=10, output_tokens=20, premium_requests=1.5, nano_aiu=2.5)

    attempt = of_attempt(opened, turn)

    assert (attempt.session, attempt.model) == ("s-1", "gpt")
    assert (attempt.premium_requests, attempt.nano_aiu, attempt.input_tokens, attempt.output_tokens) == (
        1.5, 2.5, 10, 20,
    )  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_an_attempt_ends_with_a_word_for_programs(end: type[f.AttemptEnd]) -> None:
    fact = ended(end, error_code="rate_limited")

    task, _ = fold([created(), started(), fact])

    assert task.attempt is not None and task.state is not None and task.state.result is not None
    assert (task.attempt.error_code, task.state.result.error_code) == ("rate_limited",) * 2


# --- facts that have no place ---------------------------------------------------------------------------------------

OPENED = a.AgentSessionOpened(1, AT, "s-1", is_resumed=False, model="gpt")
STRAY = [OPENED, a.AgentTurnEnded(1, AT, premium_requests=9.0), call(), call_ended(), request(), decided()]
STRAY += [a.ModelCalled(1, AT, "m")]


@pytest.mark.parametrize(
    "before",
    [
        [created()],
        [created(), f.TaskStarted()],
        [created(), started(), ended(f.TaskFailed)],
        [created(), started(), ended(f.TaskFailed), started(2)],
        [created(), started(), ended(f.TaskFailed), f.TaskRetryScheduled(1, 1, 0.5, LATER)],
    ],
    ids=["pending", "by hand", "ended", "the next runs", "waits for a retry"],
)
@pytest.mark.parametrize("fact", STRAY, ids=lambda fact: type(fact).__name__)
def test_a_fact_of_an_attempt_that_does_not_run_makes_no_row_and_breaks_nothing(
    before: list[f.Fact], fact: f.Fact
) -> None:
    without, _ = fold(before)

    task, states = fold([*before, fact])

    assert states == []
    assert task.attempt == without.attempt
    assert without.state is not None
    assert task.state == replace(without.state, version=len(before) + 1)


def test_every_fact_of_an_agent_is_known_to_the_fold() -> None:
    assert set(AGENT_FACTS) == {fact_type for fact_type in FACT_TYPES if issubclass(fact_type, a.AgentFact)}


def test_a_task_without_an_agent_has_no_conversation() -> None:
    task, _ = fold([created(), started(), f.TaskProgressed(1, AT, 5.0), ended(f.TaskSucceeded)])

    assert task.conversation is None


def test_a_fold_that_goes_on_from_another_leaves_that_as_it_is() -> None:
    task, _ = fold([created(), started(), call(), request()])
    copy = task.copy()

    copy.apply(recorded(5, call_ended()))
    copy.apply(recorded(6, decided()))

    assert task.conversation is not None and copy.conversation is not None
    assert task.conversation.take() == []
    assert len(copy.conversation.take()) == 2
    task.apply(recorded(5, ended(f.TaskInterrupted)))
    assert [agent_row(state)[0] for state in task.conversation.take()] == ["tool_calls", "permissions"]


@settings(max_examples=200)
@given(task_histories("t", max_events=20))
def test_nothing_stays_open_but_in_the_attempt_that_runs(facts: list[f.TaskFact]) -> None:
    task, states = fold(facts)
    assert task.state is not None

    for state in states:
        is_open = (isinstance(state, ToolCallState) and state.status == "running") or (
            isinstance(state, PermissionState) and state.decision is None
        )
        assert not is_open or state.attempt == task.state.running_attempt
