"""The search: in titles, commands and errors of all tasks, and in what agents called tools with; and, in one run or
between two times, in what was printed or told agents."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from ttasks.datasette_plugin.ledgers import Ledger, is_too_long, within
from ttasks.datasette_plugin.page import Asked, Page
from ttasks.display import called_for, other_arguments, printable
from ttasks.errors import LedgerUnwritableError
from ttasks.events.agent_facts import AgentAnswered, ToolCallEnded
from ttasks.events.codec import iso, to_json
from ttasks.events.envelope import RecordedEvent
from ttasks.events.facts import TaskOutput
from ttasks.events.status import TaskStatus
from ttasks.log.projection import select
from ttasks.log.query import EventFilter
from ttasks.state import rows
from ttasks.state.agent import ToolCallState
from ttasks.state.task import TaskState
from ttasks.stores.interrupted import Leftovers

HITS_MAX: Final = 100
"""How many tasks, graphs and printed lines are shown at the most."""
GRAPHS_OFFERED: Final = 50
QUERY_MAX: Final = 500
"""How many characters of what is searched for are looked at."""
SECONDS_MAX: Final = 3.0
"""How long rows may be searched, and how long output may."""
AROUND: Final = 100
"""How many characters of a line are shown before and after a hit."""
LINE_MAX: Final = 64 * 1024
"""Where a line that does not end is cut."""

_FIELDS: Final = {"title": "title", "name": "name", "command": "payload", "error": "error"}
PLACES: Final = {
    "": ("everything", ("title", "name", "command", "error")),
    "titles": ("titles and names", ("title", "name")),
    "commands": ("commands", ("command",)),
    "errors": ("errors", ("error",)),
}
"""What can be searched: how it is called, and which texts of a task that is."""
_ID: Final = re.compile(r"[0-9a-f-]{8,36}")

Parts = list[tuple[str, bool]]
"""A line in parts, each with whether it is what was searched for."""


def _like(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


@dataclass(frozen=True)
class Wanted:
    """What is searched for, and where: `after` and `before` are positions that don't count themselves."""

    text: str
    fields: tuple[str, ...]
    graph: str | None
    run: int | None
    since: datetime | None
    until: datetime | None

    @property
    def like(self) -> str:
        return _like(self.text)

    @property
    def like_in_json(self) -> str:
        return _like(to_json(self.text)[1:-1])

    def parts(self, line: str) -> Parts | None:
        """Return the line around the first hit in it; None: there is none."""
        first = re.search(re.escape(self.text), line, re.IGNORECASE)
        if first is None:
            return None
        begin, end = max(0, first.start() - AROUND), first.end() + AROUND
        shown = line[begin:end]
        found: Parts = [("…", False)] if begin else []
        at = 0
        for hit in re.finditer(re.escape(self.text), shown, re.IGNORECASE):
            found += [(shown[at : hit.start()], False), (hit[0], True)]
            at = hit.end()
        return [*found, (shown[at:] + ("…" if end < len(line) else ""), False)]


@dataclass(frozen=True)
class Hit:
    """A task or a graph that was found, and the lines (with what they are of) that hold what was searched for."""

    id: str
    title: str
    status: str
    at: datetime
    lines: list[tuple[str, Parts]]


@dataclass(frozen=True)
class Called:
    """A call of a tool by an agent, and the lines (with what they are of) that hold what was searched for."""

    task_id: str
    attempt: int
    position: int
    tool: str
    status: str
    lines: list[tuple[str, Parts]]


@dataclass(frozen=True)
class Printed:
    """A line that an attempt printed; `stream` is ``tool`` or ``sub-agent`` where an agent was told it."""

    task_id: str
    attempt: int
    stream: str
    position: int
    parts: Parts


@dataclass
class Found:
    """What was found. `titles` are those of tasks that are not among them; `notes` say what there is more of, or
    was left out.
    """

    tasks: list[Hit] = field(default_factory=list)
    graphs: list[Hit] = field(default_factory=list)
    calls: list[Called] = field(default_factory=list)
    printed: list[Printed] = field(default_factory=list)
    titles: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def page(ledger: Ledger, asked: Asked) -> Page:
    """Return the form with what was found; what is an id, or how one begins or ends, leads to what bears it."""
    given = asked.given
    text = given.get("q", "").strip()
    found = Found()
    ids = _by_id(ledger, text)
    if len(ids) == 1:
        return Page("search.html", "Search", {}, location=next(iter(ids)))
    if len(text) > QUERY_MAX:
        found.notes.append(f"Only the first {QUERY_MAX} characters are searched for.")
    wanted = Wanted(
        text[:QUERY_MAX],
        PLACES.get(given.get("in", ""), PLACES[""])[1],
        given.get("graph") or None,
        asked.number("run"),
        _moment(given.get("since", ""), found, "since", is_end=False),
        _moment(given.get("until", ""), found, "until", is_end=True),
    )
    with_output = bool(given.get("output"))
    if wanted.text:
        _search_rows(ledger, wanted, found)
        _search_calls(ledger, wanted, found)
        if with_output:
            _search_output(ledger, wanted, found)
        named = {each.task_id for each in found.calls} | {each.task_id for each in found.printed}
        found.titles = _titles(ledger, named)
    context = {
        "query": text,
        "given": given,
        "wanted": wanted,
        "found": found,
        "ids": ids,
        "places": {value: label for value, (label, _) in PLACES.items()},
        "graphs": _graphs(ledger, wanted.graph),
        "with_output": with_output,
        "local": lambda moment: moment.astimezone().strftime("%Y-%m-%dT%H:%M") if moment is not None else "",
    }
    return Page("search.html", f"Search: {printable(wanted.text)}" if text else "Search", context)


def _moment(text: str, found: Found, name: str, *, is_end: bool) -> datetime | None:
    """Return a time as it is given, in this machine's zone unless it says another; as an end, all that it names."""
    if not text.strip():
        return None
    try:
        moment = datetime.fromisoformat(text.strip())
        named = timedelta(days=1) if len(text.strip()) == 10 else timedelta(minutes=1)
        if is_end and (moment.second, moment.microsecond) == (0, 0):
            moment += named - timedelta(microseconds=1)
        return moment.astimezone()
    except (ValueError, OverflowError):
        found.notes.append(f"{name} is no time and was passed over: write 2026-11-24, or 2026-11-24 08:00.")
        return None


def _by_id(ledger: Ledger, text: str) -> dict[str, tuple[str, str]]:
    """Return what bears an id like this: address to kind and id."""
    part = text.lower()
    if not _ID.fullmatch(part) or sum(sign != "-" for sign in part) < 8:
        return {}
    links, readers = ledger.links, ledger.readers
    found = {links.run(id_): ("graph", id_) for id_ in readers.ids_like("graphs", part)}
    found |= {links.task(id_): ("task", id_) for id_ in readers.ids_like("tasks", part)}
    return dict(list(found.items())[: HITS_MAX + 1])


def _graphs(ledger: Ledger, chosen: str | None) -> list[tuple[str, str]]:
    """Return the graphs that the form offers: the latest, and the one that was chosen."""
    query = (
        "SELECT id, title, created_at FROM graphs WHERE id = ? OR id IN"
        " (SELECT id FROM graphs WHERE is_deleted = 0 ORDER BY created_at DESC LIMIT ?) ORDER BY created_at DESC"
    )
    found = ledger.readers.ask(lambda connection: connection.execute(query, [chosen, GRAPHS_OFFERED]).fetchall())
    return [(id_, rows.from_text(title)) for id_, title, _ in found]


# --- titles, commands and errors -------------------------------------------------------------------------------------


def _search_rows(ledger: Ledger, wanted: Wanted, found: Found) -> None:
    try:
        tasks = _asked(ledger, *_tasks_query(wanted))
        graphs = _asked(ledger, *_graphs_query(wanted)) if "title" in wanted.fields else []
    except LedgerUnwritableError as error:
        if not is_too_long(error):
            raise
        found.notes.append(
            f"Titles, commands and errors could not be searched within {SECONDS_MAX:.0f} s: choose a graph, or times."
        )
        return
    left = Leftovers(ledger.readers)
    found.tasks = [_task_hit(left, wanted, rows.task_state(row)) for row in tasks[:HITS_MAX]]
    for row in graphs[:HITS_MAX]:
        graph = rows.graph_state(row, (), ())
        latest = ledger.readers.runs(graph.id, newest_first=True, limit=1)
        status = str(left.run_status(latest[0])) if latest else str(TaskStatus.PENDING)
        lines = [("title", parts)] if (parts := wanted.parts(graph.title)) is not None else []
        found.graphs.append(Hit(graph.id, graph.title, status, graph.created_at, lines))
    for kind, several in (("tasks", tasks), ("graphs", graphs)):
        if len(several) > HITS_MAX:
            found.notes.append(f"There are more {kind}: these are the latest {HITS_MAX}.")


def _asked(ledger: Ledger, query: str, parameters: Sequence[Any]) -> list[Any]:
    def question(connection: sqlite3.Connection) -> list[Any]:
        return connection.execute(query, parameters).fetchall()

    return ledger.readers.ask(within(SECONDS_MAX, question))


def _tasks_query(wanted: Wanted) -> tuple[str, list[Any]]:
    at = "coalesce(result_finished_at, created_at)"
    either = " OR ".join(f"{_FIELDS[name]} LIKE ? ESCAPE '\\'" for name in wanted.fields)
    conditions = [f"is_deleted = 0 AND ({either})"]
    parameters: list[Any] = [wanted.like] * len(wanted.fields)
    _add_times(wanted, at, conditions, parameters)
    if wanted.graph is not None and wanted.run is not None:
        conditions.append("EXISTS (SELECT 1 FROM attempts WHERE task_id = tasks.id AND graph_id = ? AND run = ?)")
        parameters += [wanted.graph, wanted.run]
    elif wanted.graph is not None:
        conditions.append("id IN (SELECT task_id FROM graph_tasks WHERE graph_id = ?)")
        parameters.append(wanted.graph)
    where = " AND ".join(conditions)
    return select("tasks", f"WHERE {where} ORDER BY {at} DESC, id DESC LIMIT {HITS_MAX + 1}"), parameters


def _graphs_query(wanted: Wanted) -> tuple[str, list[Any]]:
    conditions = ["is_deleted = 0 AND title LIKE ? ESCAPE '\\'"]
    parameters: list[Any] = [wanted.like]
    _add_times(wanted, "created_at", conditions, parameters)
    if wanted.graph is not None:
        conditions.append("id = ?")
        parameters.append(wanted.graph)
    where = " AND ".join(conditions)
    return select("graphs", f"WHERE {where} ORDER BY created_at DESC, id DESC LIMIT {HITS_MAX + 1}"), parameters


def _add_times(wanted: Wanted, column: str, conditions: list[str], parameters: list[Any]) -> None:
    if wanted.since is not None:
        conditions.append(f"{column} >= ?")
        parameters.append(iso(wanted.since))
    if wanted.until is not None:
        conditions.append(f"{column} <= ?")
        parameters.append(iso(wanted.until))


def _task_hit(left: Leftovers, wanted: Wanted, task: TaskState) -> Hit:
    status = left.task_status(task)[0]
    texts = {"title": task.title, "name": task.name, "command": task.payload, "error": task.error or ""}
    if task.name == task.title:
        del texts["name"]
    lines = []
    for name in wanted.fields:
        for line in texts.get(name, "").split("\n"):
            if (parts := wanted.parts(line)) is not None:
                lines.append((name, parts))
                break
    at = task.result.finished_at if task.result is not None else task.created_at
    return Hit(task.id, task.title, str(status), at, lines)


# --- what agents called tools with -----------------------------------------------------------------------------------


def _search_calls(ledger: Ledger, wanted: Wanted, found: Found) -> None:
    searched = {"command": ("arguments", wanted.like_in_json), "error": ("error", wanted.like)}
    columns = [searched[name] for name in wanted.fields if name in searched]
    if not columns:
        return
    either = " OR ".join(f"tool_calls.{column} LIKE ? ESCAPE '\\'" for column, _ in columns)
    conditions = [f"({either})"]
    parameters: list[Any] = [like for _, like in columns]
    _add_times(wanted, "tool_calls.started_at", conditions, parameters)
    if wanted.graph is not None:
        of_attempt = "attempts.task_id = tool_calls.task_id AND attempts.attempt = tool_calls.attempt"
        conditions.append(
            f"EXISTS (SELECT 1 FROM attempts WHERE {of_attempt} AND graph_id = ? AND run = coalesce(?, run))"  # noqa: S608
        )
        parameters += [wanted.graph, wanted.run]
    query = select("tool_calls", f"WHERE {' AND '.join(conditions)} ORDER BY position DESC LIMIT {HITS_MAX + 1}")
    try:
        calls = [rows.tool_call_state(row) for row in _asked(ledger, query, parameters)]
    except LedgerUnwritableError as error:
        if not is_too_long(error):
            raise
        found.notes.append(
            f"What agents called tools with could not be searched within {SECONDS_MAX:.0f} s: choose a graph, or times."
        )
        return
    if len(calls) > HITS_MAX:
        found.notes.append(f"There are more calls of tools: these are the latest {HITS_MAX}.")
    left = Leftovers(ledger.readers)
    found.calls = [_call_hit(ledger, left, wanted, call) for call in calls[:HITS_MAX]]


def _call_hit(ledger: Ledger, left: Leftovers, wanted: Wanted, call: ToolCallState) -> Called:
    texts = {"": called_for(call.arguments), **other_arguments(call.arguments)}
    if "error" in wanted.fields:
        texts["error"] = call.error or ""
    lines = []
    for name, text in texts.items():
        first = next(filter(None, map(wanted.parts, text.split("\n"))), None)
        if first is not None:
            lines.append((name, first))
    status: str = call.status
    if status == "running":
        task = ledger.readers.task(call.task_id)
        if task is not None and left.task_status(task)[0] is TaskStatus.INTERRUPTED:
            status = "unknown"
    return Called(call.task_id, call.attempt, call.position, call.tool, status, lines)


def _titles(ledger: Ledger, task_ids: set[str]) -> dict[str, str]:
    ids = list(task_ids)
    query = f"SELECT id, title FROM tasks WHERE id IN ({', '.join('?' * len(ids))})"  # noqa: S608
    titles = ledger.readers.ask(lambda connection: connection.execute(query, ids).fetchall())
    return {id_: rows.from_text(title) for id_, title in titles}


# --- what was printed ------------------------------------------------------------------------------------------------


def _search_output(ledger: Ledger, wanted: Wanted, found: Found) -> None:
    if wanted.graph is None and wanted.since is None and wanted.until is None:
        found.notes.append("What was printed is searched in one run, or between two times: choose a graph, or times.")
        return
    deadline = time.monotonic() + SECONDS_MAX
    rest: dict[tuple[str, int, str], str] = {}
    last: dict[tuple[str, int, str], int] = {}
    for task_id, position, attempt, texts in _outputs(ledger, wanted):
        for stream, text in texts:
            key: tuple[str, int, str] = (task_id, attempt, stream)
            *lines, rest[key] = re.split(r"[\r\n]", rest.get(key, "") + text)
            if len(rest[key]) > LINE_MAX:
                lines.append(rest[key])
                rest[key] = rest[key][len(rest[key]) - len(wanted.text) + 1 :]  # so that no hit is cut in two
            last[key] = position
            _add_printed(wanted, found, key, position, lines)
        if len(found.printed) >= HITS_MAX:
            found.notes.append(f"These are the first {HITS_MAX} printed lines that were found.")
            break
        if time.monotonic() > deadline:
            found.notes.append(
                f"What was printed could not all be searched within {SECONDS_MAX:.0f} s: this is what was found until"
                f" event {position}. Shorter times, or a run, take less."
            )
            break
    for unended, line in rest.items():
        _add_printed(wanted, found, unended, last[unended], [line])
    del found.printed[HITS_MAX:]


def _add_printed(wanted: Wanted, found: Found, key: tuple[str, int, str], position: int, lines: Sequence[str]) -> None:
    for line in lines:
        if (parts := wanted.parts(line)) is not None:
            found.printed.append(Printed(*key, position, parts))


Texts = list[tuple[str, str]]
"""Texts, each with the stream that it went to."""
_PRINTED: Final = (TaskOutput.__name__, ToolCallEnded.__name__, AgentAnswered.__name__)


def _texts(event: RecordedEvent) -> tuple[int, Texts]:
    """Return what an event says was printed or told an agent, and in which attempt.

    What agents answer is printed, but for what sub-agents do.
    """
    fact = event.fact
    if isinstance(fact, TaskOutput):
        return fact.attempt, [(stream, text) for stream, _, text in fact.chunks]
    if isinstance(fact, ToolCallEnded):
        return fact.attempt, [("tool", f"{fact.output}\n")] if fact.output else []
    if isinstance(fact, AgentAnswered):
        return fact.attempt, [("sub-agent", f"{fact.text}\n")] if fact.agent else []
    return 0, []


def _outputs(ledger: Ledger, wanted: Wanted) -> Iterator[tuple[str, int, int, Texts]]:
    """Yield what was printed, as (task id, position, attempt, texts): by attempts in a run, else in the log's order."""
    readers = ledger.readers
    after = readers.position_at(wanted.since - timedelta(microseconds=1)) if wanted.since is not None else 0
    before = None
    if wanted.until is not None:
        last = readers.position_at(wanted.until)
        before = last + 1 if last is not None else 0
    streams: list[tuple[str | None, int | None]] = [(None, None)]
    if wanted.graph is not None:
        run = wanted.run
        if run is None:
            run = next((each.run for each in readers.runs(wanted.graph, newest_first=True, limit=1)), None)
        query = (
            "SELECT attempts.task_id, attempt FROM graph_tasks JOIN attempts USING (graph_id, task_id)"
            " WHERE graph_id = ? AND run = ? ORDER BY attempts.position"
        )
        attempts = readers.ask(lambda connection: connection.execute(query, [wanted.graph, run]).fetchall())
        streams = [(f"task-{task_id}", attempt) for task_id, attempt in attempts]
    for stream, attempt in streams:
        for event in readers.matching(EventFilter(stream=stream, types=_PRINTED, after=after, before=before)):
            number, texts = _texts(event)
            if texts and attempt in (None, number):
                yield event.stream.removeprefix("task-"), event.position, number, texts
