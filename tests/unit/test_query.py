"""What finding events costs: SQLite goes straight to where a page begins, and sorts nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest

from ttasks.log import files
from ttasks.log.query import EventFilter

AT = datetime(2026, 11, 24, tzinfo=UTC)
LAST = (7, "task-a", 3)
BY_STREAM = "SEARCH events USING INDEX sqlite_autoindex_events_1 (stream=? AND version{})"
BY_POSITION = "SEARCH events USING INTEGER PRIMARY KEY (rowid{})"


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(files.open_writer(None, durability="full")) as opened:
        yield opened


def plan(connection: sqlite3.Connection, query: str, parameters: list[Any]) -> list[str]:
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}", parameters)]


@pytest.mark.parametrize("rest", [{}, {"types": ("TaskOutput",)}, {"without": ("TaskOutput",)}, {"since": AT}])
@pytest.mark.parametrize("bounds", [{}, {"after": 3, "before": 9}])
def test_a_page_of_a_stream_begins_where_the_one_before_ended(
    connection: sqlite3.Connection, rest: dict[str, Any], bounds: dict[str, Any]
) -> None:
    wanted = EventFilter(stream="task-a", **rest, **bounds)
    assert plan(connection, *wanted.page(1000, LAST)) == [BY_STREAM.format(">?")]
    backwards = EventFilter(stream="task-a", newest_first=True, **rest, **bounds)
    assert plan(connection, *backwards.page(1000, LAST)) == [BY_STREAM.format("<?")]


@pytest.mark.parametrize(
    "rest",
    [
        {},
        {"types": ("TaskOutput",)},
        {"kind": "task"},
        {"kind": "task", "without": ("TaskOutput",)},
        {"until": AT},
        {"runner": 2},
    ],
)
@pytest.mark.parametrize("newest_first", [False, True])
def test_a_page_of_the_log_begins_where_the_one_before_ended(
    connection: sqlite3.Connection, rest: dict[str, Any], newest_first: bool
) -> None:
    wanted = EventFilter(newest_first=newest_first, **rest)
    assert plan(connection, *wanted.page(1000, LAST)) == [BY_POSITION.format("<?" if newest_first else ">?")]


def test_the_last_event_before_a_time_is_sought_from_the_end(connection: sqlite3.Connection) -> None:
    latest = EventFilter(until=AT, newest_first=True, limit=1)
    assert plan(connection, *latest.page(1, None)) == ["SCAN events"]  # by the key, backwards, until one is found


def test_how_many_events_a_stream_has_is_counted_in_its_index(connection: sqlite3.Connection) -> None:
    (found,) = plan(connection, *EventFilter(stream="task-a", before=9).count())
    assert found.startswith("SEARCH events USING COVERING INDEX sqlite_autoindex_events_1 (stream=?")
