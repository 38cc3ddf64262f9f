"""The page of a run: what went wrong, its graph, its timeline, its tasks, and the runs before and after it."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from graphlib import TopologicalSorter
from itertools import pairwise
from typing import Any, Final

from ttasks import clock
from ttasks.datasette_plugin import graph_drawing, timeline
from ttasks.datasette_plugin.ledgers import Ledger
from ttasks.datasette_plugin.page import Asked, Page
from ttasks.display import between, duration, printable, short, took
from ttasks.errors import NotFoundError
from ttasks.events.facts import GraphRunFinished, Member
from ttasks.events.status import RunStatus, TaskStatus
from ttasks.log.projection import select
from ttasks.log.query import EventFilter
from ttasks.log.reading import Readers, in_one_view, lacks
from ttasks.log.replay import Past
from ttasks.state import rows
from ttasks.state.graph import GraphState, RunState
from ttasks.state.task import AttemptState, TaskState
from ttasks.stores.interrupted import Leftovers

FOLLOWED_EVERY_S: Final = 5
"""How often the page of a run that goes on is made anew though nothing was recorded: its times move."""
TOLD_MAX: Final = 10
ROWS_MAX: Final = 200
"""How many tasks the timeline and the table show, unless all are asked for."""
LAST_LINES: Final = 5
ENDED: Final = (RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED)
NOT_WELL: Final = (TaskStatus.FAILED, TaskStatus.INTERRUPTED)


@dataclass(frozen=True)
class TaskOfRun:
    """A task as one run saw it. `ready_at` is when the last of what it depends on had ended in this run."""

    task: TaskState
    member: Member
    status: str
    note: str
    attempts: Sequence[AttemptState]
    ready_at: datetime | None

    @property
    def waited(self) -> float | None:
        """How many seconds passed between its being ready and its first attempt."""
        if not self.attempts or self.ready_at is None:
            return None
        return between(self.ready_at, self.attempts[0].started_at)

    @property
    def took(self) -> float | None:
        """How many seconds its attempts took together, the waits between them included."""
        if not self.attempts or self.attempts[-1].finished_at is None:
            return None
        waits = sum(between(one.finished_at or two.started_at, two.started_at) for one, two in pairwise(self.attempts))
        return waits + sum(_took(each, self.attempts[-1].finished_at) for each in self.attempts)


@dataclass(frozen=True)
class _Shown:
    """What the page is about. `run` is None for a graph that was never run; `is_latest`: its states are today's."""

    graph: GraphState
    tasks: Mapping[str, TaskState]
    run: RunState | None
    runs: Sequence[RunState]
    status: RunStatus | None
    left: Leftovers

    @property
    def is_latest(self) -> bool:
        return self.run is None or self.run == self.runs[-1]


def page(ledger: Ledger, asked: Asked) -> Page:
    """Return the page of a run of a graph: of the latest, unless the address names another."""
    token_now = token(ledger, asked)
    shown = _shown(ledger, asked)
    now = clock.now()
    attempts = _attempts(ledger, shown)
    members = _members(shown, attempts)
    rows_max = len(members) if asked.given.get("all") else ROWS_MAX
    critical = _critical(members)
    context: dict[str, Any] = {
        "graph": shown.graph,
        "run": shown.run,
        "runs": shown.runs[::-1],
        "status": shown.status or "pending",
        "is_latest": shown.is_latest,
        "seconds": _seconds(shown, now),
        "runner": ledger.readers.runner(shown.run.runner) if shown.run is not None else None,
        "members": members[:rows_max],
        "members_count": len(members),
        "of_all": ledger.links.run(shown.graph.id, asked.number("run")) + "?all=1",
        "names": {each.task.id: each.task.name for each in members},
        "critical": critical,
        "counts": _counts(members),
        "not_well": _not_well(ledger, members),
        "not_well_count": sum(each.status in NOT_WELL for each in members),
        "drawing": graph_drawing.draw([_node(each, critical) for each in members]),
        "timeline": _timeline(ledger, shown, members, critical, now, rows_max),
        "commands": _commands(ledger, shown, members),
        "history": _history(ledger, shown),
        "retried_from": _title(ledger, shown.graph.derived_from),
        "retried_as": _retried_as(ledger, shown.graph.id),
    }
    return Page("run.html", printable(shown.graph.title) or "Run", context, token=token_now)


def token(ledger: Ledger, asked: Asked) -> str | None:
    """Return what changes when the page does; None once the run has ended, or is not the latest.

    A graph that was never run may be run, and an interrupted run gone on with.
    """
    graph_id, number = asked.parts["id"], asked.number("run")
    runs = ledger.readers.runs(graph_id, newest_first=True, limit=1)
    if number is not None and (not runs or runs[0].run != number):
        return None
    status = Leftovers(ledger.readers).run_status(runs[0]) if runs else None
    if status in ENDED:
        return None
    versions = (
        "SELECT graphs.version, (SELECT sum(tasks.version) FROM graph_tasks JOIN tasks ON tasks.id = task_id"
        " WHERE graph_id = graphs.id) FROM graphs WHERE graphs.id = ?"
    )
    found = ledger.readers.ask(lambda connection: connection.execute(versions, [graph_id]).fetchone())
    if found is None:
        return None
    moment = int(clock.now().timestamp()) // FOLLOWED_EVERY_S if status is RunStatus.RUNNING else "-"
    return f"{found[0]} {found[1]} {status or 'pending'} {moment}"


def _shown(ledger: Ledger, asked: Asked) -> _Shown:
    graph_id, number = asked.parts["id"], asked.number("run")
    readers = ledger.readers
    runs = readers.runs(graph_id)
    latest = runs[-1] if runs else None
    run = latest if number is None else next((each for each in runs if each.run == number), None)
    if number is not None and run is None:
        raise NotFoundError(f"graph {graph_id[:80]} has no run {number}; it was run {len(runs)} times")
    left: Leftovers = Leftovers(readers)
    at = readers if run is latest or run is None else Past(readers, _last_position(readers, run, runs))
    found = at.graph_with_tasks(graph_id)
    if found is None:
        raise NotFoundError(f"there is no graph {graph_id[:80]!r} in {ledger.path}")
    graph, tasks = found
    missing = [id_ for id_ in graph.members if id_ not in tasks]
    if missing:
        raise lacks(ledger.path, f"tasks of graph {graph_id} ({missing[0]}, …)")
    return _Shown(graph, tasks, run, runs, left.run_status(run) if run is not None else None, left)


def _last_position(readers: Readers, run: RunState, runs: Sequence[RunState]) -> int:
    """Return where an earlier run ended; what was changed between it and the next run is none of its own."""
    next_position = runs[runs.index(run) + 1].position
    ends = EventFilter(
        f"graph-{run.graph_id}", types=(GraphRunFinished.__name__,), before=next_position, newest_first=True, limit=1
    )
    end = next((event.position for event in readers.matching(ends)), 0)
    return end if end > run.position else next_position - 1


def _attempts(ledger: Ledger, shown: _Shown) -> dict[str, list[AttemptState]]:
    """Return the attempts of the run by task, oldest first."""
    if shown.run is None:
        return {}
    of_run = "task_id IN (SELECT task_id FROM graph_tasks WHERE graph_id = ?) AND graph_id = ? AND run = ?"
    query = select("attempts", f"WHERE {of_run} ORDER BY task_id, attempt")
    parameters = (shown.graph.id, shown.graph.id, shown.run.run)
    found = ledger.readers.ask(lambda connection: connection.execute(query, parameters).fetchall())
    by_task: dict[str, list[AttemptState]] = {}
    for attempt in map(rows.attempt_state, found):
        by_task.setdefault(attempt.task_id, []).append(attempt)
    return by_task


def _members(shown: _Shown, attempts: Mapping[str, Sequence[AttemptState]]) -> list[TaskOfRun]:
    """Return the tasks in the graph's order, with where each stood at the end of the run, or stands now."""
    ready_at = _ready_at(shown, attempts)
    members = []
    for id_, member in shown.graph.members.items():
        task = shown.tasks[id_]
        status, note = shown.left.task_status(task) if shown.is_latest else (task.status, "")
        members.append(TaskOfRun(task, member, status, note, attempts.get(id_, ()), ready_at.get(id_)))
    return members


def _ready_at(shown: _Shown, attempts: Mapping[str, Sequence[AttemptState]]) -> dict[str, datetime]:
    """Return when nothing kept each task waiting any more but its turn: its dependencies had ended, or never ran."""
    if shown.run is None:
        return {}
    ready_at: dict[str, datetime] = {}
    over_at: dict[str, datetime] = {}
    for id_ in TopologicalSorter({id_: member.after for id_, member in shown.graph.members.items()}).static_order():
        after = shown.graph.members[id_].after if id_ in shown.graph.members else ()
        ready_at[id_] = max((over_at[parent] for parent in after), default=shown.run.started_at)
        ended_at = attempts[id_][-1].finished_at if id_ in attempts else None
        over_at[id_] = max(ended_at or ready_at[id_], shown.run.started_at)
    return ready_at


def _critical(members: Sequence[TaskOfRun]) -> set[str]:
    """Return the tasks that the run's length is due to: back from the last that ended, by what each waited for."""
    by_id = {each.task.id: each for each in members if each.attempts and not each.member.is_finally}

    def ended_at(id_: str) -> datetime:
        attempt = by_id[id_].attempts[-1]
        return attempt.finished_at or attempt.started_at

    critical: set[str] = set()
    current = max(by_id, key=ended_at, default=None)
    while current is not None:
        critical.add(current)
        parents = [parent for parent in by_id[current].member.after if parent in by_id]
        current = max(parents, key=ended_at, default=None)
    return critical if len(critical) > 1 else set()


def _counts(members: Sequence[TaskOfRun]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for each in members:
        counts[each.status] = counts.get(each.status, 0) + 1
    return counts


def _seconds(shown: _Shown, now: datetime) -> float | None:
    return took(shown.run, now if shown.status is RunStatus.RUNNING else None) if shown.run is not None else None


def _not_well(ledger: Ledger, members: Sequence[TaskOfRun]) -> list[tuple[TaskOfRun, list[tuple[str, str]]]]:
    """Return the first tasks that failed or were interrupted, each with the last lines that it printed."""
    told = [each for each in members if each.status in NOT_WELL][:TOLD_MAX]
    return [
        (each, ledger.readers.last_lines(each.task.id, each.attempts[-1].attempt, LAST_LINES) if each.attempts else [])
        for each in told
    ]


def _node(each: TaskOfRun, critical: set[str]) -> graph_drawing.Node:
    return graph_drawing.Node(
        id=each.task.id,
        label=printable(each.task.name) or short(each.task.id),
        status=each.status,
        after=each.member.after,
        is_finally=each.member.is_finally,
        is_optional=not each.member.is_required,
        is_critical=each.task.id in critical,
    )


def _timeline(
    ledger: Ledger, shown: _Shown, members: Sequence[TaskOfRun], critical: set[str], now: datetime, rows_max: int
) -> timeline.Timeline | None:
    if shown.run is None or not any(each.attempts for each in members):
        return None
    moments = [attempt.finished_at or _heard_at(ledger, attempt) for each in members for attempt in each.attempts]
    end = now if shown.status is RunStatus.RUNNING else max(filter(None, [*moments, shown.run.finished_at]))
    lines = [
        timeline.Line(each.task.id, printable(each.task.name), _spans(each, end), each.task.id in critical)
        for each in members
    ]
    return timeline.plot(lines, shown.run.started_at, end, rows_max)


def _heard_at(ledger: Ledger, attempt: AttemptState) -> datetime:
    """Return when an attempt whose end is not recorded was last heard of."""
    latest = EventFilter(f"task-{attempt.task_id}", newest_first=True, limit=1)
    return next((event.recorded_at for event in ledger.readers.matching(latest)), attempt.started_at)


def _took(attempt: AttemptState, until: datetime) -> float:
    """Return how many seconds an attempt took: as its runner measured it, else until a time."""
    return attempt.duration if attempt.duration is not None else between(attempt.started_at, until)


def _spans(each: TaskOfRun, until: datetime) -> list[timeline.Span]:
    spans: list[timeline.Span] = []
    if each.waited and each.ready_at is not None:
        says = f"waited {duration(each.waited)} until it was its turn"
        spans.append(timeline.Span("waiting", each.ready_at, each.attempts[0].started_at, says))
    before: AttemptState | None = None
    for attempt in each.attempts:
        if before is not None and before.finished_at is not None:
            seconds = between(before.finished_at, attempt.started_at)
            spans.append(
                timeline.Span("retry", before.finished_at, attempt.started_at, f"retried after {duration(seconds)}")
            )
        is_last = attempt is each.attempts[-1]
        status = each.status if is_last and attempt.finished_at is None else attempt.status
        end = attempt.finished_at or until
        says = f"attempt {attempt.attempt}: {status}, {duration(_took(attempt, end))}"
        spans.append(timeline.Span(status, attempt.started_at, end, says))
        before = attempt
    return spans


def _commands(ledger: Ledger, shown: _Shown, members: Sequence[TaskOfRun]) -> list[tuple[str, str]]:
    """Return what a person may do next: (what it does, the command)."""
    if not shown.is_latest:
        return []
    names = {each.task.id: each.task.name for each in members}
    return [ledger.step(step, names) for step in shown.left.steps_of_graph(shown.graph.id)]


def _history(ledger: Ledger, shown: _Shown) -> list[Any]:
    """Return the events of the graph's own stream, newest first."""
    wanted = EventFilter(f"graph-{shown.graph.id}", newest_first=True, limit=50)
    return list(ledger.readers.matching(wanted))


def _title(ledger: Ledger, graph_id: str | None) -> tuple[str, str] | None:
    graph = ledger.readers.graph(graph_id) if graph_id is not None else None
    return (graph.id, graph.title) if graph is not None else None


def _retried_as(ledger: Ledger, graph_id: str) -> list[tuple[str, str]]:
    def question(connection: sqlite3.Connection) -> list[tuple[str, str]]:
        query = "SELECT id, title FROM graphs WHERE derived_from = ? ORDER BY created_at, id"
        return [(id_, rows.from_text(title)) for id_, title in connection.execute(query, [graph_id])]

    return ledger.readers.ask(in_one_view(question))
