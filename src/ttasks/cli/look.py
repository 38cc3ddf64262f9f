"""Looking at a ledger: graphs, tasks, events. Nothing in here writes."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

from rich.text import Text

from ttasks.cli.conversation import Conversation
from ttasks.cli.printed import show_plain, whole_lines
from ttasks.cli.text import Painter, Styler, console, print_lines, print_table, state
from ttasks.display import count, duration, moment, plain, printable, short, took, why_of_task
from ttasks.errors import NotFoundError
from ttasks.events.codec import encode, iso
from ttasks.events.envelope import RecordedEvent
from ttasks.events.facts import TaskResolved
from ttasks.events.status import RunStatus, TaskStatus
from ttasks.log.reading import Readers
from ttasks.state.exits import exit_text
from ttasks.state.graph import GraphState
from ttasks.state.reconcile import WAITING
from ttasks.state.runner import RunnerState
from ttasks.state.task import GRACE_S, AttemptState
from ttasks.stores.interrupted import Leftovers

LAST_LINES = 20


def list_latest(path: Path, *, tasks: bool, limit: int) -> None:
    """Print the latest graphs, or tasks, newest first."""
    readers = Readers.open(path)
    left = Leftovers(readers)
    rows: list[tuple[str | Text, ...]] = []
    if tasks:
        columns: tuple[str, ...] = ("task", "title", "status", "attempts", "took", "created", "")
        for task in readers.tasks(latest=limit):
            stands, note = left.task_status(task)
            lasted = duration(task.result.duration) if task.result is not None else ""
            said = note or (why_of_task(task) if stands is TaskStatus.FAILED else "")
            cells = (short(task.id), printable(task.title), state(stands), str(task.attempts), lasted)
            rows.append((*cells, moment(task.created_at), said))
    else:
        columns = ("graph", "title", "status", "tasks", "took", "created")
        for graph, counts in readers.graphs()[:limit]:
            status, took = _graph_status(readers, left, graph)
            counts = left.counts(status, counts)
            parts = ", ".join(f"{counts[each]} {each}" for each in (*TaskStatus, WAITING) if each in counts)
            rows.append((short(graph.id), printable(graph.title), state(status), parts, took, moment(graph.created_at)))
    print_table(columns, rows)


def _graph_status(readers: Readers, left: Leftovers, graph: GraphState) -> tuple[str, str]:
    """Return where a graph stands, as far as this host can tell, and how long its latest run took."""
    if graph.run_status is None:
        return "pending", ""
    run = readers.latest_run(graph.id)
    return left.run_status(run), duration(took(run))


def find(readers: Readers, part: str | None) -> tuple[str, str]:
    """Return (``graphs`` or ``tasks``, id) of what `part` names; without it, of the latest graph."""
    if part is None:
        latest = readers.graphs()
        if latest:
            return "graphs", latest[0][0].id
        raise NotFoundError(f"{readers.path} has no graph yet; `ttasks ls --tasks` lists its tasks")
    wanted = part.removeprefix("task-").removeprefix("graph-")
    found = [(table, id_) for table in ("graphs", "tasks") for id_ in readers.ids_like(table, wanted)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise NotFoundError(f"{readers.path} has no graph and no task whose id begins or ends with {part!r}")
    some = ", ".join(id_ for _, id_ in found[:5])
    raise NotFoundError(f"{part!r} is not one id but {len(found)}: {some}{', …' if len(found) > 5 else ''}")


def show(path: Path, part: str | None, *, whole_output: bool) -> None:
    """Print a graph or a task."""
    readers = Readers.open(path)
    table, id_ = find(readers, part)
    if table == "graphs":
        _show_graph(readers, id_)
    else:
        _show_task(readers, id_, whole_output=whole_output)


def _field(name: str, value: object) -> None:
    console().print(
        Text.assemble((f"{name:<9}", "dim"), " ", value if isinstance(value, Text) else printable(str(value)))
    )


def _show_graph(readers: Readers, graph_id: str) -> None:
    found = readers.graph_with_tasks(graph_id)
    assert found is not None
    graph, tasks = found
    left = Leftovers(readers)
    status, took = _graph_status(readers, left, graph)
    _field("graph", graph.id)
    _field("title", graph.title)
    _field("status", Text.assemble(state(status), f" after {took}" if took else ""))
    if graph.source is not None:
        _field("file", f"{graph.source.path} (sha256 {graph.source.sha256[:12]}…)")
    for run in readers.runs(graph_id):
        is_dead = run.status is RunStatus.RUNNING and left.is_interrupted(run)
        stands = "interrupted (its runner is gone)" if is_dead else str(run.status)
        # The row has who runs it now; who started it is in the event.
        began = next((event.runner for event in readers.events(after=run.position - 1, limit=1)), None)
        by = _who(readers.runner(began) if began is not None else None)
        by += f"; resumed {_who(readers.runner(run.runner))}" if run.runner != began else ""
        _field(f"run {run.run}", f"{stands}, started {moment(run.started_at)}, {by}")
    rows: list[tuple[str | Text, ...]] = []
    for member in graph.members.values():
        task = tasks[member.task]
        task_status, note = left.task_status(task)
        parents = ", ".join(printable(tasks[parent].name) for parent in member.after)
        notes = [
            *(["finally"] if member.is_finally else []),
            *([] if member.is_required else ["optional"]),
            *([f"blocked by {printable(tasks[task.blocked_by].name)}"] if task.blocked_by in tasks else []),
            *([note] if note else []),
            *([said] if (said := why_of_task(task)) else []),
        ]
        took = duration(task.result.duration) if task.result is not None else ""
        rows.append(
            (
                short(task.id),
                printable(task.name),
                state(task_status),
                str(task.attempts),
                took,
                parents,
                "; ".join(notes),
            )
        )
    print_table(("task", "name", "status", "attempts", "took", "after", ""), rows)


def _who(runner: RunnerState | None) -> str:
    if runner is None:
        return "by nobody known"
    commit = f", commit {runner.git_commit[:12]}" if runner.git_commit else ""
    dirty = " with changes" if runner.git_dirty else ""
    return f"by {runner.user}@{runner.host} (process {runner.pid}) in {runner.cwd}{commit}{dirty}"


def _show_task(readers: Readers, task_id: str, *, whole_output: bool) -> None:
    task = readers.task(task_id)
    assert task is not None
    attempts = readers.attempts(task_id)
    if whole_output and (not attempts or attempts[-1].session is None):
        for attempt in attempts[-1:]:
            _print_output(readers, task_id, attempt.attempt, whole=True)
        return
    status, note = Leftovers(readers).task_status(task)
    _field("task", task.id)
    _field("title", task.title)
    _field("status", Text.assemble(state(status), f" ({note})" if note else ""))
    _field("type", task.type)
    first, *more = task.payload.splitlines() or [""]
    _field("payload", first)
    for line in more:
        _field("", line)
    for name, value in (
        ("cwd", task.cwd),
        ("timeout", task.timeout),
        ("grace", task.grace if task.grace != GRACE_S else None),
        ("output", "not waited for once the script has exited" if not task.wait_for_output else None),
        ("error", task.error),
    ):
        if value is not None:
            _field(name, value if name != "error" else plain(str(value).strip()))
    for variable, value in sorted((task.env or {}).items()):
        _field("env", f"{variable}={value}")
    for variable in sorted(task.env_digests or {}):
        _field("env", f"{variable}=(secret, not recorded)")
    for attempt in attempts:
        is_left = attempt.status is TaskStatus.RUNNING and status is TaskStatus.INTERRUPTED
        _field(f"attempt {attempt.attempt}", _attempt_line(readers, attempt, status if is_left else attempt.status))
    for event in readers.events(stream=f"task-{task_id}", type=TaskResolved.__name__):
        if isinstance(event.fact, TaskResolved):
            why = f": {event.fact.note}" if event.fact.note else ""
            _field("resolved", f"{event.fact.answer}, by {event.fact.by} at {moment(event.recorded_at)}{why}")
    if attempts:
        latest = attempts[-1]
        conversation = Conversation(readers, latest, is_left=status is TaskStatus.INTERRUPTED)
        # What an agent says is printed as well: of an attempt that ended, that would be to say it twice.
        if conversation.print(whole=whole_output) and not whole_output and latest.status is not TaskStatus.RUNNING:
            return
        _print_output(readers, task_id, latest.attempt, whole=whole_output)


def _attempt_line(readers: Readers, attempt: AttemptState, status: str) -> str:
    parts = [f"{status}, started {moment(attempt.started_at)}"]
    if attempt.duration is not None:
        took = "last heard of after" if status is TaskStatus.INTERRUPTED else "took"
        parts.append(f"{took} {duration(attempt.duration)}")
    if attempt.returncode is not None:
        parts.append(exit_text(attempt.returncode, attempt.reason))
    if attempt.reason not in (None, str(status), "exit_code"):
        parts.append(str(attempt.reason))
    if attempt.error_code not in (None, attempt.reason):
        parts.append(str(attempt.error_code))
    return ", ".join([*parts, f"handler {attempt.handler}", _who(readers.runner(attempt.runner))])


def _print_output(readers: Readers, task_id: str, attempt: int, *, whole: bool) -> None:
    out = console()
    if whole:
        painter = Painter(out, "\t")
        for block in whole_lines(readers.chunks(task_id, attempt), painter.whole if painter.paints else show_plain):
            out.file.write(block)
        out.file.flush()
        return
    lines = readers.last_lines(task_id, attempt, LAST_LINES)
    if lines:
        out.print(Text(f"last {count(len(lines), 'line')} of output:", style="dim"))
    print_lines(out, lines, "| ")


def print_events(
    path: Path, part: str | None, *, after: int, type_: str | None, limit: int | None, as_json: bool
) -> None:
    """Print events, a line each."""
    readers = Readers.open(path)
    stream = None
    if part is not None:
        table, id_ = find(readers, part)
        stream = f"{table.removesuffix('s')}-{id_}"
    if type_ is not None:
        readers.check_type(type_)
    out = console()
    styled = Styler(out)
    for event in readers.events(stream=stream, type=type_, after=after, limit=limit):
        if as_json:
            line = _as_json(event)
        else:
            at, kind = styled(_local_time(event.recorded_at), "dim"), styled(printable(event.type), "bold")
            where = printable(f"{event.stream}@{event.version}")
            line = f"{event.position} {at} {where} {kind} {printable(encode(event.fact))}"
        out.file.write(f"{line}\n")
    out.file.flush()


def _local_time(at: datetime) -> str:
    return at.astimezone().isoformat(sep=" ", timespec="milliseconds")


def _as_json(event: RecordedEvent) -> str:
    return json.dumps(
        {
            "position": event.position,
            "stream": event.stream,
            "version": event.version,
            "type": event.type,
            "recorded_at": iso(event.recorded_at),
            "runner": event.runner,
            "cause": event.cause,
            "data": json.loads(encode(event.fact)),
            "hash": event.hash.hex(),
        }
    )
