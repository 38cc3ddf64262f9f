"""The home of a ledger: what ran, what runs, what was left behind, what failed lately, and how the ledger is."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from ttasks import clock
from ttasks.datasette_plugin.ledgers import Ledger
from ttasks.datasette_plugin.page import Asked, Page
from ttasks.display import took
from ttasks.events.codec import iso
from ttasks.events.status import RunStatus, TaskStatus
from ttasks.log import checked
from ttasks.log.checked import Checked
from ttasks.log.projection import select
from ttasks.log.reading import STANDS, in_one_view, lacks
from ttasks.model.interrupted import Interrupted, Owed
from ttasks.state import rows
from ttasks.state.graph import GraphState, RunState
from ttasks.state.runner import RunnerState
from ttasks.state.task import AttemptState, TaskState
from ttasks.stores.interrupted import Leftovers

LATEST_RUNS: Final = 20
LATEST_TASKS: Final = 10
LATEST_FAILURES: Final = 20
FAILED_WITHIN: Final = timedelta(days=1)
FOLLOWED_EVERY_S: Final = 30
"""How often the home is made anew though nothing was recorded: times move on, and a runner may be gone unheard."""


@dataclass(frozen=True)
class LatestRun:
    """A run as the home shows it. `counts` says how many tasks stand where; {}: a later run of the graph has them."""

    run: RunState
    graph: GraphState
    status: RunStatus
    seconds: float | None
    counts: dict[str, int]
    runner: RunnerState | None


@dataclass(frozen=True)
class LatestAttempt:
    """An attempt of a task as the home shows it."""

    attempt: AttemptState
    task: TaskState
    status: str
    runner: RunnerState | None


@dataclass(frozen=True)
class Left:
    """Something that was interrupted, and what a person can do about it: what a command does, and the command."""

    work: Interrupted
    steps: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class LastCheck:
    """What is noted of the last check. `holds`: the event that it ended with is still the one it was then."""

    checked: Checked
    holds: bool
    since: int


def page(ledger: Ledger, asked: Asked) -> Page:
    """Return the home of a ledger."""
    now = clock.now()
    readers, left = ledger.readers, Leftovers(ledger.readers)
    position, hash_ = readers.head()
    token_now = token(ledger, asked)
    runs = _latest_runs(ledger, left)
    failures, failed = _failures(ledger, now - FAILED_WITHIN)
    interrupted = left.interrupted()
    running_tasks, latest_tasks = _by_themselves(ledger, left)
    context: dict[str, Any] = {
        "runs": runs,
        "running": _running(ledger, left, runs),
        "running_tasks": running_tasks,
        "tasks": latest_tasks,
        "interrupted": [_left(ledger, left, work) for work in interrupted],
        "owed": _owed(left, ledger, interrupted),
        "failures": failures,
        "titles": _titles(ledger, [each.attempt.graph for each in failures]),
        "failed": failed,
        "failed_since": now - FAILED_WITHIN,
        "head": (position, hash_.hex()),
        "head_at": next((event.recorded_at for event in readers.events(after=position - 1, limit=1)), None),
        "last_check": _last_check(ledger, position),
        "verify": ledger.command("verify"),
    }
    return Page("home.html", f"{ledger.name}: what ran", context, token=token_now)


def token(ledger: Ledger, _: Asked) -> str | None:
    """Return what changes when the home does. It is live as long as it is looked at: anybody may start a run."""
    position, _hash = ledger.readers.head()
    noted = checked.read(ledger.path)
    left = Leftovers(ledger.readers)
    alive = [graph_id for graph_id in ledger.readers.open_graphs() if _is_alive(ledger, left, graph_id)]
    moment = int(clock.now().timestamp()) // FOLLOWED_EVERY_S
    return f"{position} {len(alive)} {iso(noted.at) if noted is not None else 'never checked'} {moment}"


def _is_alive(ledger: Ledger, left: Leftovers, graph_id: str) -> bool:
    run = ledger.readers.latest_run(graph_id)
    return not left.is_interrupted(run)


def _latest_runs(ledger: Ledger, left: Leftovers) -> list[LatestRun]:
    return _told(ledger, left, ledger.readers.runs(newest_first=True, limit=LATEST_RUNS))


def _running(ledger: Ledger, left: Leftovers, latest: Sequence[LatestRun]) -> list[LatestRun]:
    """Return the runs that go on, also those that began before the latest."""
    told = {(each.run.graph_id, each.run.run) for each in latest}
    found = []
    for graph_id in ledger.readers.open_graphs():
        run = ledger.readers.latest_run(graph_id)
        if (graph_id, run.run) not in told:
            found.append(run)
    older = _told(ledger, left, found)
    return [each for each in (*older, *latest) if each.status is RunStatus.RUNNING]


def _told(ledger: Ledger, left: Leftovers, runs: Sequence[RunState]) -> list[LatestRun]:
    ids = list(dict.fromkeys(run.graph_id for run in runs))
    places = ", ".join("?" * len(ids))
    counted = (
        f"SELECT graph_id, {STANDS}, count(*) FROM graph_tasks JOIN tasks ON tasks.id = task_id"  # noqa: S608
        f" WHERE graph_id IN ({places}) GROUP BY 1, 2"
    )

    def question(connection: sqlite3.Connection) -> tuple[list[Any], list[Any]]:
        graphs = connection.execute(select("graphs", f"WHERE id IN ({places})"), ids).fetchall()
        return graphs, connection.execute(counted, ids).fetchall()

    found, counts_found = ledger.readers.ask(in_one_view(question))
    graphs = {row[0]: rows.graph_state(row, (), ()) for row in found}
    counts: dict[str, dict[str, int]] = {}
    for graph_id, status, number in counts_found:
        counts.setdefault(graph_id, {})[status] = number
    told = []
    for run in runs:
        graph = graphs.get(run.graph_id)
        if graph is None:
            raise lacks(ledger.path, f"graph {run.graph_id}")
        status = left.run_status(run)
        seconds = took(run, clock.now() if status is RunStatus.RUNNING else None)
        of_tasks = left.counts(status, counts.get(graph.id, {})) if run.run == graph.runs else {}
        told.append(LatestRun(run, graph, status, seconds, of_tasks, ledger.readers.runner(run.runner)))
    return told


def _by_themselves(ledger: Ledger, left: Leftovers) -> tuple[list[LatestAttempt], list[LatestAttempt]]:
    """Return, of tasks outside of graphs, the attempts that go on, and the latest, both latest first.

    Every attempt has to be looked at, but once, and few of them sorted: ids made later sort later, so that the tasks
    made last tell from which position on the latest attempts are.
    """
    last_made = "SELECT position FROM attempts WHERE graph_id IS NULL ORDER BY task_id DESC, attempt DESC LIMIT ?"
    of_them = (
        "SELECT task_id, attempt, status FROM attempts WHERE graph_id IS NULL AND (status = 'running' OR position >= ?)"
        " ORDER BY position DESC"
    )

    def question(connection: sqlite3.Connection) -> list[tuple[str, int, str]]:
        positions = [position for (position,) in connection.execute(last_made, [LATEST_TASKS])]
        return connection.execute(of_them, [min(positions, default=0)]).fetchall()

    found = ledger.readers.ask(in_one_view(question))
    claimed = [each for each in found if each[2] == "running"]
    going_on = [each for each in _attempts(ledger, left, claimed[:LATEST_RUNS]) if each.status is TaskStatus.RUNNING]
    return going_on, _attempts(ledger, left, found[:LATEST_TASKS])


def _attempts(ledger: Ledger, left: Leftovers, wanted: Sequence[tuple[str, int, str]]) -> list[LatestAttempt]:
    told = []
    for task_id, number, _ in wanted:
        task = ledger.readers.task(task_id)
        attempt = next((each for each in ledger.readers.attempts(task_id) if each.attempt == number), None)
        if task is not None and attempt is not None and not task.is_deleted:
            is_latest = attempt.attempt == task.attempts
            status = left.task_status(task)[0] if is_latest else attempt.status
            told.append(LatestAttempt(attempt, task, status, ledger.readers.runner(attempt.runner)))
    return told


def _failures(ledger: Ledger, since: datetime) -> tuple[list[LatestAttempt], int]:
    """Return the tasks that failed last since then, with the attempt they ended with, and how many there are."""
    query = (
        "SELECT id, count(*) OVER () FROM tasks WHERE status = 'failed' AND retry_due_at IS NULL AND is_deleted = 0"
        " AND result_finished_at >= ?"
        " ORDER BY result_finished_at DESC LIMIT ?"
    )
    parameters = [iso(since), LATEST_FAILURES]
    found = ledger.readers.ask(lambda connection: connection.execute(query, parameters).fetchall())
    told = []
    for task_id, _ in found:
        task, attempts = ledger.readers.task(task_id), ledger.readers.attempts(task_id)
        if task is not None and attempts:
            told.append(LatestAttempt(attempts[-1], task, task.status, ledger.readers.runner(attempts[-1].runner)))
    return told, found[0][1] if found else 0


def _titles(ledger: Ledger, graph_ids: Sequence[str | None]) -> dict[str, str]:
    ids = list({id_ for id_ in graph_ids if id_ is not None})
    query = f"SELECT id, title FROM graphs WHERE id IN ({', '.join('?' * len(ids))})"  # noqa: S608
    found = ledger.readers.ask(lambda connection: connection.execute(query, ids).fetchall())
    return {id_: rows.from_text(title) for id_, title in found}


def _last_check(ledger: Ledger, position: int) -> LastCheck | None:
    noted = checked.read(ledger.path)
    if noted is None:
        return None
    query = "SELECT hash FROM events WHERE position = ?"
    found = ledger.readers.ask(lambda connection: connection.execute(query, (noted.position,)).fetchone())
    return LastCheck(noted, found is not None and found[0] == bytes.fromhex(noted.head), position - noted.position)


def _left(ledger: Ledger, left: Leftovers, work: Interrupted) -> Left:
    if work.kind == "graph":
        steps = left.steps_of_graph(work.id)
    else:
        task = ledger.readers.task(work.id)
        steps = left.steps_of_task(task) if task is not None else []
    found = ledger.readers.graph_with_tasks(work.id) if work.kind == "graph" else None
    names = {id_: task.name for id_, task in found[1].items()} if found is not None else {work.id: work.title}
    return Left(work, [ledger.step(step, names) for step in steps])


def _owed(
    left: Leftovers, ledger: Ledger, interrupted: Sequence[Interrupted]
) -> list[tuple[Owed, list[tuple[str, str]]]]:
    """Return the finally tasks that are owed and are not told as interrupted, each with its steps."""
    told = {task_id for work in interrupted for task_id in (work.id, *work.owed)}
    found = []
    for owed in left.owed():
        task = ledger.readers.task(owed.task_id)
        if task is not None and owed.task_id not in told:
            found.append((owed, [ledger.step(step, {task.id: task.name}) for step in left.steps_of_task(task)]))
    return found
