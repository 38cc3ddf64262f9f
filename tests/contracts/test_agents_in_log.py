"""What agents do, in the log: its rows are there with its events, and another process goes on with them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from strategies import AT, created, ended, started
from ttasks.errors import StreamConflictError
from ttasks.events import agent_facts as a
from ttasks.events import facts as f
from ttasks.log.event_log import EventLog
from ttasks.log.projection import TaskFold, select
from ttasks.log.replay import Past
from ttasks.log.transaction import Batch, Owned
from ttasks.log.verify import verify

pytestmark = pytest.mark.usefixtures("outside_git")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture(params=["file", "memory"])
def log(request: pytest.FixtureRequest, path: Path) -> Iterator[EventLog]:
    opened = EventLog.open(path if request.param == "file" else None)
    yield opened
    opened.close()


CALLS = [a.ToolCallStarted(1, AT, "c1", "bash", {"command": "ls"}), a.ToolCallStarted(1, AT, "c2", "view")]
REQUEST = a.PermissionRequested(1, AT, "r1", "shell", "ls", call="c1")
MODEL = a.ModelCalled(1, AT, "gpt", input_tokens=10)


def of_agents(log: EventLog) -> list[Any]:
    """Return how the tool calls, the requests and the models of task t stand, after comparing rows and events."""
    assert verify(log.readers).problems == []
    past = Past(log.readers, log.readers.head_position())
    now, then = (
        [*readers.tool_calls("t"), *readers.permissions("t"), *readers.model_calls("t"), *readers.attempts("t")]
        for readers in (log.readers, past)
    )
    assert now == then
    calls, requests, models = log.readers.tool_calls("t"), log.readers.permissions("t"), log.readers.model_calls("t")
    return [[call.status for call in calls], [each.decision for each in requests], [each.model for each in models]]


def test_what_an_agent_does_is_in_its_rows_as_soon_as_it_is_appended(log: EventLog) -> None:
    log.append(Batch("task-t", [created(), started(), *CALLS, REQUEST, MODEL], 0))
    assert of_agents(log) == [["running", "running"], [None], ["gpt"]]

    log.append(
        Batch("task-t", [a.PermissionDecided(1, AT, "r1", "denied", "deny all")], Owned(1)),
        Batch("task-t", [a.ToolCallEnded(1, AT, "c1", "denied")], Owned(1)),
    )
    assert of_agents(log) == [["denied", "running"], ["denied"], ["gpt"]]

    log.append(Batch("task-t", [ended(f.TaskFailed)], Owned(1)))
    assert of_agents(log) == [["denied", "unknown"], ["denied"], ["gpt"]]


def test_rows_of_agents_can_be_asked_for_by_attempt(log: EventLog) -> None:
    log.append(Batch("task-t", [created(), started(), *CALLS, REQUEST, MODEL, ended(f.TaskFailed), started(2)], 0))
    log.append(Batch("task-t", [a.ToolCallStarted(2, AT, "c1", "edit"), replace(MODEL, attempt=2)], 8))

    for readers in (log.readers, Past(log.readers, log.readers.head_position())):
        assert [call.tool for call in readers.tool_calls("t", 1)] == ["bash", "view"]
        assert [call.tool for call in readers.tool_calls("t", 2)] == ["edit"]
        assert [len(readers.permissions("t", attempt)) for attempt in (1, 2, None)] == [1, 0, 1]
        assert [len(readers.model_calls("t", attempt)) for attempt in (1, 2, None)] == [1, 1, 2]


def test_who_opens_the_ledger_anew_ends_what_was_open_before(path: Path) -> None:
    with closing(EventLog.open(path)) as log:
        log.append(Batch("task-t", [created(), started(), *CALLS, REQUEST], 0))

    with closing(EventLog.open(path)) as log:
        log.append(Batch("task-t", [a.ToolCallEnded(1, AT, "c2", "succeeded")], Owned(1)))
        assert of_agents(log) == [["running", "succeeded"], [None], []]

    with closing(EventLog.open(path)) as log:
        log.append(Batch("task-t", [ended(f.TaskInterrupted)], Owned(1)))
        assert of_agents(log) == [["unknown", "succeeded"], ["unanswered"], []]


def test_an_append_that_is_refused_leaves_what_is_open_as_it_was(log: EventLog) -> None:
    log.append(Batch("task-t", [created(), started(), *CALLS], 0))

    with pytest.raises(StreamConflictError):
        log.append(
            Batch("task-t", [a.ToolCallEnded(1, AT, "c1", "failed")], Owned(1)),
            Batch("task-t", [a.ToolCallEnded(1, AT, "c2", "failed")], 1),
        )
    log.append(Batch("task-t", [a.ToolCallEnded(1, AT, "c2", "succeeded")], Owned(1)))

    assert of_agents(log) == [["running", "succeeded"], [], []]


def nested(depth: int) -> Any:
    value: Any = "the core"
    for level in range(depth):
        value = [value] if level % 2 else {"inside": value}
    return value


ODD_ARGUMENTS = {
    "too big": ({"n": 2**63, "fits": 2**63 - 1}, {"n": str(2**63), "fits": 2**63 - 1}),
    "too small": ([-(2**63) - 1, -(2**63)], [str(-(2**63) - 1), -(2**63)]),
    "no number": ((float("nan"), float("-inf"), 0.5), ["nan", "-inf", 0.5]),
    "a name that is no text": ({"a": {1: True, None: None}}, {"a": {"1": True, "None": None}}),
    "as deep as can be": (nested(100), nested(100)),
}


@pytest.mark.parametrize(("said", "held"), ODD_ARGUMENTS.values(), ids=ODD_ARGUMENTS)
def test_what_no_ledger_can_hold_of_arguments_is_held_as_texts(log: EventLog, said: Any, held: Any) -> None:
    (appended,) = log.append(Batch("task-t", [created(), started(), a.ToolCallStarted(1, AT, "c", "odd", said)], 0))

    assert appended.records[-1].fact == a.ToolCallStarted(1, AT, "c", "odd", held)
    assert log.readers.tool_calls("t")[0].arguments == held
    assert of_agents(log) == [["running"], [], []]


@pytest.mark.parametrize("depth", [101, 102, 250, 900])
def test_arguments_that_are_too_deep_are_cut_off_there(log: EventLog, depth: int) -> None:
    log.append(Batch("task-t", [created(), started(), a.ToolCallStarted(1, AT, "c", "odd", nested(depth))], 0))

    held, levels = log.readers.tool_calls("t")[0].arguments, 0
    while not isinstance(held, str):
        held, levels = held[0] if isinstance(held, list) else held["inside"], levels + 1
    assert (held, levels) == ("…", 100)
    assert of_agents(log) == [["running"], [], []]


def test_a_number_that_no_ledger_can_hold_is_left_out_and_its_neighbours_are_not(log: EventLog) -> None:
    odd = a.ModelCalled(1, AT, "gpt", 2**63, 5, duration=float("nan"), multiplier=10**400, nano_aiu=1.5)

    log.append(Batch("task-t", [created(), started(), odd], 0), Batch("task-other", [created()], 0))

    (found,) = log.readers.model_calls("t")
    assert (found.input_tokens, found.output_tokens) == (None, 5)
    assert (found.duration, found.multiplier, found.nano_aiu) == (None, None, 1.5)
    assert of_agents(log) == [[], [], ["gpt"]]


def test_only_of_a_task_that_runs_it_is_asked_what_its_agent_has_open(path: Path) -> None:
    with closing(EventLog.open(path)) as log:
        log.append(
            Batch("task-t", [created(), started(), *CALLS, ended(f.TaskFailed)], 0),
            Batch("task-pending", [created()], 0),
        )
        log.append(Batch("task-runs", [created(), started()], 0))

    asked = []
    with closing(sqlite3.connect(path)) as connection:
        connection.set_trace_callback(asked.append)
        for task_id in ("t", "pending", "runs"):
            assert TaskFold.load(connection, task_id).conversation is None
    assert len([query for query in asked if "tool_calls" in query or "permissions" in query]) == 2
    assert len(asked) == 8


def test_what_is_open_is_found_by_an_index(path: Path) -> None:
    with closing(EventLog.open(path)) as log:
        log.append(Batch("task-t", [created(), started(), *CALLS, REQUEST, MODEL], 0))

    with closing(sqlite3.connect(path)) as connection:
        for table in ("tool_calls", "permissions", "model_calls"):
            where = select(table, "WHERE task_id = 't' AND attempt = 1")
            plan = " ".join(str(row) for row in connection.execute(f"EXPLAIN QUERY PLAN {where}"))
            assert f"USING INDEX {table}_of_attempts (task_id=? AND attempt=?)" in plan
