"""A row is its state: what is put into a table comes out of it as it was, however hostile its texts."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import HOSTILE, created, members, records_of, texts, times
from ttasks.events.facts import Member, RetrySpec, Source
from ttasks.log.files import open_writer
from ttasks.log.projection import TABLES, put, select
from ttasks.state import rows
from ttasks.state.agent import ModelCallState, PermissionState, ToolCallState
from ttasks.state.graph import GraphState, RunState
from ttasks.state.rows import ERROR_BYTES_MAX
from ttasks.state.runner import RunnerState
from ttasks.state.task import AttemptState, ResultState, TaskState, apply

ids = st.uuids().map(str)
no_id = st.none() | ids
# What the operating system or ttasks itself says holds no hostile text.
plain = st.text("abcdefghijklmnopqrstuvwxyz:0123456789-", max_size=20)
lengths = st.none() | st.integers(0, 2**40)

results = records_of(ResultState, reason=st.none() | plain, error=st.none() | texts, error_length=lengths)
tasks = records_of(
    TaskState,
    id=ids,
    blocked_by=no_id,
    derived_from=no_id,
    error_length=lengths,
    resolution=st.none() | plain,
    result=st.none() | results,
)
attempts = records_of(AttemptState, task_id=ids, graph=no_id, reason=st.none() | plain, process_start=st.none() | plain)
graphs = records_of(
    GraphState,
    id=ids,
    derived_from=no_id,
    members=st.lists(members, max_size=4, unique_by=lambda place: place.task).map(
        lambda places: {place.task: place for place in places}
    ),
    source=st.none() | st.builds(Source, texts, plain),
)
runs = records_of(RunState, graph_id=ids)
calls = records_of(
    ToolCallState, task_id=ids, error=st.none() | texts, error_length=lengths, position=st.integers(1, 2**62)
)
permissions = records_of(PermissionState, task_id=ids, position=st.integers(1, 2**62))
model_calls = records_of(ModelCallState, task_id=ids, position=st.integers(1, 2**62))
runners = records_of(
    RunnerState,
    id=ids,
    boot_id=plain,
    process_start=plain,
    ttasks_version=plain,
    python_version=plain,
    platform=plain,
)


@pytest.fixture(scope="module")
def database() -> Iterator[sqlite3.Connection]:
    with closing(open_writer(None, durability="full")) as connection:
        yield connection


def through(database: sqlite3.Connection, table: str, *put_in: rows.Row) -> list[rows.Row]:
    """Return these rows as `table` holds them."""
    database.execute("BEGIN")
    try:
        database.executemany(put(table), put_in)
        return database.execute(select(table, "ORDER BY rowid" if table == "runners" else "")).fetchall()
    finally:
        database.execute("ROLLBACK")


def kept(state: Any) -> Any:
    """Return `state` with the part of its error text that a row holds."""
    if state.error is None:
        return replace(state, error_length=None)
    tail = rows.tail(state.error)
    is_cut = state.error_length is None and tail != state.error
    return replace(state, error=tail, error_length=len(state.error) if is_cut else state.error_length)


# --- inverses -------------------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(state=tasks)
def test_a_task_comes_back_from_its_row(state: TaskState, database: sqlite3.Connection) -> None:
    (row,) = through(database, "tasks", rows.task_row(state))

    expected = kept(replace(state, result=kept(state.result) if state.result is not None else None))
    assert rows.task_state(row) == expected
    assert rows.task_row(expected) == row, "writing what was read changes nothing"


@settings(max_examples=100)
@given(state=attempts)
def test_an_attempt_comes_back_from_its_row(state: AttemptState, database: sqlite3.Connection) -> None:
    (row,) = through(database, "attempts", rows.attempt_row(state))

    assert rows.attempt_state(row) == kept(state)


@settings(max_examples=100)
@given(state=graphs)
def test_a_graph_comes_back_from_its_rows(state: GraphState) -> None:
    back = rows.graph_state(rows.graph_row(state), list(rows.member_rows(state)), list(rows.dependency_rows(state)))

    assert back == state
    assert list(back.members) == list(state.members)


@settings(max_examples=50)
@given(state=graphs)
def test_a_graphs_own_row_comes_back_from_its_table(state: GraphState, database: sqlite3.Connection) -> None:
    (row,) = through(database, "graphs", rows.graph_row(state))

    assert rows.graph_state(row, [], []) == replace(state, members={})


@settings(max_examples=50)
@given(policy=st.none() | records_of(RetrySpec), place=ids)
def test_a_member_comes_back_from_its_table(policy: RetrySpec | None, place: str, database: sqlite3.Connection) -> None:
    state = GraphState(
        "g", "", next_time(), {place: Member(place, ("x", "y"), True, False, policy)}, None, None, None, 1
    )

    found = through(database, "graph_tasks", *rows.member_rows(state))
    edges = through(database, "graph_dependencies", *rows.dependency_rows(state))

    assert rows.graph_state(rows.graph_row(state), found, edges) == state


@settings(max_examples=100)
@given(state=runs)
def test_a_run_comes_back_from_its_row(state: RunState, database: sqlite3.Connection) -> None:
    (row,) = through(database, "runs", rows.run_row(state))

    assert rows.run_state(row) == state


@settings(max_examples=100)
@given(state=runners)
def test_a_runner_comes_back_from_its_row(state: RunnerState, database: sqlite3.Connection) -> None:
    (row,) = through(database, "runners", rows.runner_row(state))

    assert rows.runner_state(row) == state


@settings(max_examples=150)
@given(state=calls)
def test_a_tool_call_comes_back_from_its_row(state: ToolCallState, database: sqlite3.Connection) -> None:
    (row,) = through(database, "tool_calls", rows.tool_call_row(state))

    assert rows.tool_call_state(row) == kept(state)
    assert rows.tool_call_row(kept(state)) == row, "writing what was read changes nothing"


@settings(max_examples=100)
@given(state=permissions)
def test_a_request_comes_back_from_its_row(state: PermissionState, database: sqlite3.Connection) -> None:
    (row,) = through(database, "permissions", rows.permission_row(state))

    assert rows.permission_state(row) == state


@settings(max_examples=100)
@given(state=model_calls)
def test_a_call_of_a_model_comes_back_from_its_row(state: ModelCallState, database: sqlite3.Connection) -> None:
    (row,) = through(database, "model_calls", rows.model_call_row(state))

    assert rows.model_call_state(row) == state


@pytest.mark.parametrize("table", TABLES)
def test_the_columns_of_a_row_are_those_of_its_table(table: str, database: sqlite3.Connection) -> None:
    found = [name for _, name, *_ in database.execute(f"PRAGMA table_info({table})")]

    assert sorted(TABLES[table]) == sorted(found)


def next_time() -> Any:
    return created().created_at


# --- texts ----------------------------------------------------------------------------------------------------------


@given(texts)
def test_a_text_comes_back_from_the_form_that_sqlite_holds(value: str) -> None:
    assert rows.from_text(rows.text(value)) == value


@settings(max_examples=150)
@given(value=texts)
def test_sqlite_holds_a_stored_text_whole(value: str, database: sqlite3.Connection) -> None:
    stored = rows.text(value)

    assert database.execute("SELECT ?, length(?)", (stored, stored)).fetchone() == (stored, len(stored))


@pytest.mark.parametrize("value", ["", "plain", "grüße", "😀", "line\nbreak", '"quoted"'])
def test_an_ordinary_text_is_stored_as_it_is(value: str) -> None:
    assert rows.text(value) == value


def test_hostile_texts_are_stored_in_an_escaped_form() -> None:
    assert rows.text("a\0b") == '\ufffd"a\\u0000b"'
    assert rows.text("\udcff") == '\ufffd"\\udcff"'
    assert rows.text("\ufffd") == '\ufffd"\\ufffd"'


def test_no_two_texts_are_stored_alike() -> None:
    values = [*HOSTILE, *(rows.text(value) for value in HOSTILE)]

    assert len({rows.text(value) for value in values}) == len(set(values))


# --- errors ---------------------------------------------------------------------------------------------------------


def a_task(error: str | None, length: int | None = None) -> TaskState:
    return replace(apply(None, created(), task_id="t", version=1), error=error, error_length=length)


def test_of_a_long_error_the_row_keeps_the_tail_and_the_length_of_the_whole() -> None:
    error = "".join(f"line {number}\n" for number in range(2000))

    back = rows.task_state(rows.task_row(a_task(error)))

    assert back.error == error[-ERROR_BYTES_MAX:]
    assert back.error_length == len(error)


@pytest.mark.parametrize("size", [0, 1, ERROR_BYTES_MAX - 1, ERROR_BYTES_MAX])
def test_an_error_of_4_kib_is_kept_whole_and_without_a_length(size: int) -> None:
    back = rows.task_state(rows.task_row(a_task("x" * size)))

    assert (back.error, back.error_length) == ("x" * size, None)


def test_the_error_of_a_result_and_of_an_attempt_are_cut_the_same() -> None:
    moment = next_time()
    error = "e" * 5000
    result = ResultState(a_task(None).status, 1, moment, moment, 0.0, error, None, 1, None)
    attempt = AttemptState("t", 1, 3, 2, a_task(None).status, "h", moment, 0, error=error)

    of_result = rows.task_state(rows.task_row(replace(a_task(None), result=result))).result
    of_attempt = rows.attempt_state(rows.attempt_row(attempt))

    assert of_result is not None
    assert (of_result.error, of_result.error_length) == (error[-ERROR_BYTES_MAX:], 5000)
    assert (of_attempt.error, of_attempt.error_length) == (error[-ERROR_BYTES_MAX:], 5000)


def test_an_error_that_was_a_tail_already_keeps_the_length_of_its_whole() -> None:
    back = rows.task_state(rows.task_row(a_task("tail", 123456)))

    assert (back.error, back.error_length) == ("tail", 123456)


@given(st.text(st.characters(exclude_categories=()), max_size=3), st.sampled_from("aö€😀\udcff"), st.integers(0, 6000))
def test_a_tail_is_cut_between_characters_and_is_as_long_as_it_can_be(end: str, char: str, count: int) -> None:
    error = char * count + end
    size = len(error.encode("utf-8", "surrogatepass"))

    tail = rows.tail(error)

    assert error.endswith(tail)
    kept_size = len(tail.encode("utf-8", "surrogatepass"))
    assert kept_size <= ERROR_BYTES_MAX
    assert kept_size > min(size, ERROR_BYTES_MAX) - 4
    assert rows.tail(tail) == tail


@given(times)
def test_a_time_in_a_row_is_read_back_in_utc(moment: Any) -> None:
    state = replace(a_task(None), created_at=moment)

    assert rows.task_state(rows.task_row(state)).created_at == moment
