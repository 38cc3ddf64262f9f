"""One task: where it stands and why, what it is, each of its attempts, what they printed, and its history."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ttasks import clock
from ttasks.datasette_plugin import conversation
from ttasks.datasette_plugin.download import Download
from ttasks.datasette_plugin.ledgers import Ledger
from ttasks.datasette_plugin.page import Asked, Page
from ttasks.datasette_plugin.printed import Output, Part, Point
from ttasks.datasette_plugin.telling import told
from ttasks.datasette_plugin.terminal import Block
from ttasks.display import between, printable, short
from ttasks.errors import NotFoundError
from ttasks.events.envelope import RecordedEvent
from ttasks.events.facts import AttemptEnd, TaskCancelRequested, TaskProgressed, TaskResolved, TaskStarted
from ttasks.events.status import TaskStatus, TaskType
from ttasks.log.query import EventFilter
from ttasks.log.reading import CHANGING_NOTHING, Readers, in_one_view
from ttasks.state import rows
from ttasks.state.runner import RunnerState
from ttasks.state.task import AttemptState, TaskState
from ttasks.stores.interrupted import Leftovers

ATTEMPTS_MAX: Final = 100
EVENTS_MAX: Final = 200
DECISIONS_MAX: Final = 10
NEIGHBOURS_MAX: Final = 50
"""How many tasks it waits for, or that wait for it, are listed."""

_ENDS: Final = tuple(each.__name__ for each in AttemptEnd.__subclasses__())
_DECISIONS: Final = (TaskResolved.__name__, TaskCancelRequested.__name__)
_NEVER_LEFT: Final = (TaskStatus.PENDING, TaskStatus.SUCCEEDED, TaskStatus.CANCELLED, TaskStatus.BLOCKED)
_SETTLED: Final = (TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.BLOCKED)


@dataclass(frozen=True)
class Section:
    """What else there is to show of an attempt: `template` is included, and finds `section` in its context."""

    template: str
    content: Mapping[str, Any]


def _conversation(ledger: Ledger, task: TaskState, attempt: int, asked: Asked) -> Section | None:
    content = conversation.shown(ledger, task, attempt, asked)
    return Section("ttasks/conversation.html", content) if content is not None else None


SECTIONS: Final[dict[TaskType, Callable[[Ledger, TaskState, int, Asked], Section | None]]] = {
    TaskType.PROMPT: _conversation,
    TaskType.AGENT: _conversation,
}
"""By type of task, what shows the things that only such tasks record about an attempt (None: it has none)."""


@dataclass(frozen=True)
class Named:
    """A task to name: its id, title and status."""

    id: str
    title: str
    status: str


@dataclass(frozen=True)
class Membership:
    """The task in one of its graphs: `runs` is the graph's number of runs; `retry` is the policy as text, None: none.

    `after` are the tasks it waits for, `then` those that wait for it, each at most `NEIGHBOURS_MAX` + 1.
    """

    graph_id: str
    title: str
    runs: int
    is_finally: bool
    is_required: bool
    retry: str | None
    after: Sequence[Named]
    then: Sequence[Named]


@dataclass(frozen=True)
class ShownAttempt:
    """An attempt as the page shows it."""

    attempt: AttemptState
    status: str
    seconds: float | None
    runner: RunnerState | None


@dataclass(frozen=True)
class Told:
    """An event of the task, and what it says; before it, `folded` events that only say what was printed or how far."""

    event: RecordedEvent
    says: str
    folded: int


def page(ledger: Ledger, asked: Asked) -> Page:
    """Return the page of a task.

    Raises:
        NotFoundError: there is no such task, or attempt.
    """
    readers, left = ledger.readers, Leftovers(ledger.readers)
    task = _task(readers, asked)
    status, note = left.task_status(task)
    chosen, attempts = _chosen(readers, task, asked)
    context: dict[str, Any] = {
        "task": task,
        "status": status,
        "note": note,
        "go_on": [choice for step in left.steps_of_task(task) for choice in ledger.choices(step)],
        "payload": Block.of(task.payload),
        "first_line": printable(_one_line(task.payload)),
        "env": sorted((task.env or {}).items()),
        "secret": sorted(task.env_digests or {}),
        "memberships": _memberships(readers, left, task.id),
        **_relatives(readers, left, task),
        "decisions": _decisions(readers, task.id),
        "attempts": [_shown(readers, task, each, status) for each in attempts[-ATTEMPTS_MAX:]],
        "attempts_in_all": len(attempts),
        "chosen": chosen,
        **_of_attempt(ledger, task, chosen, attempts, asked),
        **_output(readers, task, chosen, asked),
        **_history(readers, task),
        "neighbours_max": NEIGHBOURS_MAX,
    }
    title = task.title or task.name or task.id
    return Page("task.html", f"{printable(_one_line(title))}: {status}", context, token=_token(task, status))


def token(ledger: Ledger, asked: Asked) -> str | None:
    """Return what changes when the page does; None once the task has ended and nobody goes on with it."""
    task = _task(ledger.readers, asked)
    return _token(task, Leftovers(ledger.readers).task_status(task)[0])


def output(ledger: Ledger, asked: Asked) -> Download:
    """Return what an attempt printed, as a file; of only one stream where ``stream`` is given.

    Raises:
        NotFoundError: there is no such task, attempt or stream.
    """
    task = _task(ledger.readers, asked)
    chosen, _ = _chosen(ledger.readers, task, asked)
    stream = asked.given.get("stream") or None
    if stream not in (None, "stdout", "stderr"):
        raise NotFoundError(f"stream={stream[:40]!r} is neither stdout nor stderr")
    if chosen is None:
        raise NotFoundError(f"task {task.id} was never started: it has printed nothing")
    name = f"{short(task.id)}-{chosen}-{stream or 'output'}.txt"
    return Download(name, Output(ledger.readers, task.id, chosen).texts(stream))


def _task(readers: Readers, asked: Asked) -> TaskState:
    task = readers.task(asked.parts["id"])
    if task is None:
        raise NotFoundError(f"there is no task {asked.parts['id'][:80]} in this ledger")
    return task


def _token(task: TaskState, status: str) -> str | None:
    return None if status in _SETTLED and not task.is_owned else f"{task.version} {status}"


def _one_line(text: str) -> str:
    line = text.strip().split("\n")[0]
    return line if len(line) <= 80 else line[:80] + "…"


def _chosen(readers: Readers, task: TaskState, asked: Asked) -> tuple[int | None, list[AttemptState]]:
    """Return which attempt is shown (None: there is none), and those that this ledger saw begin."""
    attempts = readers.attempts(task.id)
    numbers = {each.attempt for each in attempts}
    if task.result is not None and task.result.attempt is not None:
        numbers.add(task.result.attempt)  # of a task that was imported, this is all there is
    wanted = asked.number("attempt")
    if wanted is None:
        return max(numbers, default=None), attempts
    if wanted not in numbers:
        raise NotFoundError(f"task {task.id} has no attempt {wanted} in this ledger: it has {len(numbers)}")
    return wanted, attempts


def _shown(readers: Readers, task: TaskState, attempt: AttemptState, status: str) -> ShownAttempt:
    is_running = attempt.status is TaskStatus.RUNNING
    is_left = is_running and status is TaskStatus.INTERRUPTED and attempt.attempt == task.attempts
    seconds = between(attempt.started_at, clock.now()) if is_running and not is_left else attempt.duration
    return ShownAttempt(attempt, status if is_left else attempt.status, seconds, readers.runner(attempt.runner))


def _decisions(readers: Readers, task_id: str) -> list[RecordedEvent]:
    """Return what people decided of the task lately, oldest first."""
    wanted = EventFilter(f"task-{task_id}", types=_DECISIONS, newest_first=True, limit=DECISIONS_MAX)
    found = [each for each in readers.matching(wanted) if isinstance(each.fact, TaskResolved | TaskCancelRequested)]
    return found[::-1]


# --- what it belongs to ----------------------------------------------------------------------------------------------


def _memberships(readers: Readers, left: Leftovers, task_id: str) -> list[Membership]:
    named = "SELECT tasks.id, tasks.title, tasks.status FROM graph_dependencies JOIN tasks ON tasks.id = {} WHERE"
    waits_for = f"{named.format('dependency_id')} graph_id = ? AND task_id = ? ORDER BY place LIMIT ?"
    waited_for = f"{named.format('task_id')} graph_id = ? AND dependency_id = ? LIMIT ?"
    member = (
        "SELECT graph_id, title, runs, is_finally, is_required, retry_policy FROM graph_tasks"
        " JOIN graphs ON graphs.id = graph_id WHERE task_id = ? ORDER BY created_at DESC LIMIT ?"
    )

    def question(connection: sqlite3.Connection) -> list[Membership]:
        found = []
        for graph_id, title, runs, is_finally, is_required, policy in connection.execute(
            member, (task_id, NEIGHBOURS_MAX)
        ):
            near = (graph_id, task_id, NEIGHBOURS_MAX + 1)
            after = _named(connection.execute(waits_for, near))
            then = _named(connection.execute(waited_for, near))
            retry = _policy(json.loads(policy)) if policy is not None else None
            flags = (bool(is_finally), bool(is_required))
            found.append(Membership(graph_id, rows.from_text(title), runs, *flags, retry, after, then))
        return found

    return [
        replace(each, after=_standing(readers, left, each.after), then=_standing(readers, left, each.then))
        for each in readers.ask(in_one_view(question))
    ]


def _named(found: Any) -> list[Named]:
    return [Named(id_, rows.from_text(title), TaskStatus(status)) for id_, title, status in found]


def _standing(readers: Readers, left: Leftovers, tasks: Sequence[Named]) -> list[Named]:
    """Return them as they stand: what is recorded as running may have been left by a runner that is gone."""
    return [
        replace(each, status=left.task_status(task)[0])
        if each.status not in _NEVER_LEFT and (task := readers.task(each.id)) is not None
        else each
        for each in tasks
    ]


def _policy(policy: Mapping[str, Any]) -> str:
    """Return a retry policy as people say it."""
    text = f"up to {policy['max_attempts']} attempts, {policy['backoff']:g} s apart"
    if policy.get("factor", 1) != 1:
        text += f", each time {policy['factor']:g} times as long"
    if policy.get("max_backoff") is not None:
        text += f", {policy['max_backoff']:g} s at the most"
    if policy.get("jitter"):
        text += f", give or take {policy['jitter']:g}"
    if policy.get("retry_on") is not None:
        text += f", after {', '.join(policy['retry_on']) or 'no exception'}"
    return text


def _relatives(readers: Readers, left: Leftovers, task: TaskState) -> dict[str, Any]:
    """Return the tasks that this one was made from, blocked by, and made into."""
    query = "SELECT id, title, status FROM tasks WHERE"

    def question(connection: sqlite3.Connection) -> tuple[list[Named], list[Named], list[Named]]:
        derived = f"{query} derived_from = ? ORDER BY created_at LIMIT ?"
        return (
            _named(connection.execute(f"{query} id = ?", (task.derived_from,))),
            _named(connection.execute(f"{query} id = ?", (task.blocked_by,))),
            _named(connection.execute(derived, (task.id, NEIGHBOURS_MAX))),
        )

    names = ("derived_from", "blocked_by", "derived")
    found = readers.ask(in_one_view(question))
    return {name: _standing(readers, left, tasks) for name, tasks in zip(names, found, strict=True)}


# --- an attempt ------------------------------------------------------------------------------------------------------


def _of_attempt(
    ledger: Ledger, task: TaskState, chosen: int | None, attempts: Sequence[AttemptState], asked: Asked
) -> dict[str, Any]:
    """Return what is told of the chosen attempt beside what it printed."""
    readers = ledger.readers
    attempt = next((each for each in attempts if each.attempt == chosen), None)
    progress = _latest_report(readers, task.id, attempt)
    error, length = _error(readers, task, chosen, attempt)
    make = SECTIONS.get(task.type)
    return {
        "attempt": attempt,
        "progress": progress,
        "error": Block.of(error) if error else None,
        "error_length": length,
        **_began_with(readers, task, attempt),
        "section": make(ledger, task, chosen, asked) if make is not None and chosen is not None else None,
    }


def _began_with(readers: Readers, task: TaskState, attempt: AttemptState | None) -> dict[str, Any]:
    """Return what the attempt ran, where the task was revised since, and how it is retried."""
    event = next(readers.events(after=attempt.position - 1, limit=1), None) if attempt is not None else None
    fact = event.fact if event is not None else None
    if not isinstance(fact, TaskStarted):
        return {"other_payload": None, "retry": None}
    is_other = fact.payload is not None and fact.payload != task.payload
    return {
        "other_payload": Block.of(fact.payload) if is_other and fact.payload is not None else None,
        "retry": _policy(vars(fact.retry_policy)) if fact.retry_policy is not None else None,
    }


def _latest_report(readers: Readers, task_id: str, attempt: AttemptState | None) -> TaskProgressed | None:
    """Return how far the attempt said last that it is."""
    if attempt is None:
        return None
    wanted = EventFilter(f"task-{task_id}", types=(TaskProgressed.__name__,), after=attempt.position, newest_first=True)
    facts = (event.fact for event in readers.matching(replace(wanted, limit=1)))
    of_it = (fact for fact in facts if isinstance(fact, TaskProgressed) and fact.attempt == attempt.attempt)
    return next(of_it, None)


def _error(
    readers: Readers, task: TaskState, chosen: int | None, attempt: AttemptState | None
) -> tuple[str | None, int | None]:
    """Return the error text of the chosen attempt, and the number of characters of the whole where it is a tail.

    What an attempt that succeeded printed to stderr is its error text as well, but is told with what it printed.
    """
    if (attempt.status if attempt is not None else task.status) is TaskStatus.SUCCEEDED:
        return None, None
    if attempt is not None and attempt.error is not None:
        if attempt.error_length is None:
            return attempt.error, None
        for fact in _ends(readers, attempt):
            if fact.attempt == attempt.attempt:
                return fact.error, fact.error_length
    is_latest = chosen is None or chosen >= task.attempts
    if is_latest and task.error is not None:
        if task.error_length is None:
            return task.error, None
        whole = readers.whole_task(task.id, task.version)
        return (whole.error, whole.error_length) if whole is not None else (task.error, task.error_length)
    return (attempt.error, attempt.error_length) if attempt is not None else (None, None)


def _ends(readers: Readers, attempt: AttemptState) -> Iterator[AttemptEnd]:
    wanted = EventFilter(f"task-{attempt.task_id}", types=_ENDS, after=attempt.position)
    return (event.fact for event in readers.matching(wanted) if isinstance(event.fact, AttemptEnd))


def _output(readers: Readers, task: TaskState, chosen: int | None, asked: Asked) -> dict[str, Any]:
    """Return what the chosen attempt printed, or the part of it that is asked for, and what its handler returned."""
    if chosen is None:
        return {"part": None, "returned": None}
    printed = Output(readers, task.id, chosen)
    before, after, within = asked.number("before"), asked.number("after"), asked.number("within") or 0
    part: Part
    if after is not None:
        part = printed.head(Point(after, within))
    else:
        part = printed.tail(Point(before, within) if before is not None else None)
    returned = readers.returned(task.id, chosen)
    return {
        "part": part,
        "is_from_end": after is None,
        "returned": Block.of(returned) if returned is not None else None,
    }


# --- its history -----------------------------------------------------------------------------------------------------


def _history(readers: Readers, task: TaskState) -> dict[str, Any]:
    """Return the latest events of the task, oldest first; those that there can be thousands of are only counted."""
    wanted = EventFilter(f"task-{task.id}", without=CHANGING_NOTHING, newest_first=True, limit=EVENTS_MAX)
    found = [event for event in readers.matching(wanted) if event.version <= task.version][::-1]
    if len(found) == EVENTS_MAX:
        earlier, versions = found[0].version - 1, [found[0].version - 1]
    else:
        earlier, versions = 0, [0]
    versions += [event.version for event in found]
    history = [
        Told(event, told(event.fact), event.version - before - 1)
        for before, event in zip(versions, found, strict=False)
    ]
    return {"history": history, "earlier": earlier, "folded_last": task.version - versions[-1]}
