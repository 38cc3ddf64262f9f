"""After any history, appended in any batches, the rows are what replaying the log gives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import appends, graph_histories, task_histories
from ttasks.events.facts import Fact, GraphRunStarted, TaskStarted
from ttasks.log.event_log import EventLog
from ttasks.log.projection import TABLES, select
from ttasks.log.transaction import Batch
from ttasks.log.verify import rebuild, verify
from ttasks.state import graph as graph_rules
from ttasks.state import rows
from ttasks.state import task as task_rules

pytestmark = pytest.mark.usefixtures("outside_git")
EXAMPLES = 300 if os.environ.get("TTASKS_CAMPAIGN") == "full" else 30

histories = st.fixed_dictionaries(
    {
        "task-a": task_histories("a"),
        "task-b": task_histories("b"),
        "graph-g": graph_histories("g"),
    }
)


@contextmanager
def recorded(wanted: list[list[Batch]]) -> Iterator[EventLog]:
    with closing(EventLog.open(None)) as log:
        for batches in wanted:
            log.append(*batches)
        yield log


def tables(log: EventLog) -> dict[str, list[tuple[Any, ...]]]:
    return log.readers.ask(
        lambda connection: {table: sorted(connection.execute(select(table)), key=repr) for table in TABLES}
    )


def facts_of(wanted: list[list[Batch]], stream: str) -> list[Fact]:
    return [fact for batches in wanted for batch in batches if batch.stream == stream for fact in batch.facts]


@settings(max_examples=EXAMPLES)
@given(appends(histories))
def test_any_history_in_any_batches_leaves_a_ledger_that_keeps_every_promise(wanted: list[list[Batch]]) -> None:
    with recorded(wanted) as log:
        assert verify(log.readers).problems == []


@settings(max_examples=EXAMPLES)
@given(appends(histories))
def test_it_makes_no_difference_whether_one_process_appends_or_each_time_another(wanted: list[list[Batch]]) -> None:
    with recorded(wanted) as log, closing(EventLog.open(None)) as anew:
        for batches in wanted:
            anew.append(*batches)
            assert anew._transaction is not None
            anew._transaction._folds.clear()  # as a process that has just opened it

        assert verify(anew.readers).problems == []
        for table in ("tool_calls", "permissions", "model_calls"):
            assert tables(anew)[table] == tables(log)[table]


@settings(max_examples=EXAMPLES)
@given(appends(histories))
def test_rebuilding_changes_nothing(wanted: list[list[Batch]]) -> None:
    with recorded(wanted) as log:
        before, events = tables(log), list(log.readers.events())

        assert rebuild(log) == len(events)

        assert tables(log) == before
        assert list(log.readers.events()) == events


@settings(max_examples=EXAMPLES)
@given(appends(histories))
def test_what_is_read_is_what_was_appended(wanted: list[list[Batch]]) -> None:
    with recorded(wanted) as log:
        for stream in ("task-a", "task-b", "graph-g"):
            assert [event.fact for event in log.readers.events(stream=stream)] == facts_of(wanted, stream)


@settings(max_examples=EXAMPLES)
@given(appends(histories))
def test_the_row_of_a_task_is_the_fold_of_its_facts(wanted: list[list[Batch]]) -> None:
    with recorded(wanted) as log:
        for task_id in "ab":
            state = None
            for version, fact in enumerate(facts_of(wanted, f"task-{task_id}"), 1):
                state = task_rules.apply(state, fact, task_id=task_id, version=version)
            assert state is not None
            found = log.readers.task(task_id)
            assert found is not None
            assert rows.task_row(found) == rows.task_row(state)


@settings(max_examples=EXAMPLES)
@given(appends(histories))
def test_the_rows_of_a_graph_are_the_fold_of_its_facts(wanted: list[list[Batch]]) -> None:
    with recorded(wanted) as log:
        state = None
        for version, fact in enumerate(facts_of(wanted, "graph-g"), 1):
            state = graph_rules.apply(state, fact, graph_id="g", version=version)
        assert log.readers.graph("g") == state


@settings(max_examples=EXAMPLES)
@given(appends(histories))
def test_every_attempt_and_every_run_has_its_row(wanted: list[list[Batch]]) -> None:
    with recorded(wanted) as log:
        for task_id in "ab":
            starts = [fact.attempt for fact in facts_of(wanted, f"task-{task_id}") if isinstance(fact, TaskStarted)]
            attempts = [attempt for attempt in starts if attempt is not None]
            assert [row.attempt for row in log.readers.attempts(task_id)] == attempts
        runs = [fact.run for fact in facts_of(wanted, "graph-g") if isinstance(fact, GraphRunStarted)]
        assert [row.run for row in log.readers.runs("g")] == runs
