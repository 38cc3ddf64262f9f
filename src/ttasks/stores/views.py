"""What a ledger shows besides its tasks and graphs: its events, and the runs of its graphs. Nothing in here writes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from ttasks import clock
from ttasks.errors import LedgerError
from ttasks.events.envelope import RecordedEvent
from ttasks.log.query import EventFilter
from ttasks.log.reading import Readers
from ttasks.log.replay import Past
from ttasks.model.graph import TaskGraph
from ttasks.model.run import Run, Runner
from ttasks.model.task import Task
from ttasks.public import public

POLL_S: Final = 0.05
"""How often a follower looks for new events: one look is a single step into the log's index."""


class EventView:
    """Events of the log, each a `RecordedEvent`, in position order; ``len`` counts them.

    ``store.events`` is all of them; calling a view gives one of fewer. Each iteration reads anew, a page at a time: it
    holds nothing open however slowly it goes, so it may also come to events that were recorded meanwhile.
    """

    def __init__(
        self, readers: Readers | Past, closed: threading.Event, wanted: EventFilter, check_open: Callable[[], None]
    ) -> None:
        self._readers = readers
        self._closed = closed
        self._wanted = wanted
        self._check_open = check_open

    def __call__(
        self,
        *,
        task: Task | str | None = None,
        graph: TaskGraph | str | None = None,
        stream: str | None = None,
        type: str | Iterable[str] | None = None,
        after: int | None = None,
        before: int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = None,
        newest_first: bool | None = None,
    ) -> EventView:
        """Return a view of those for which all of this holds too; what is given replaces what was given before.

        Args:
            task: they are in the stream of this task, or of the one with this id.
            graph: they are in the stream of this graph, or of the one with this id; its tasks have their own.
            stream: they are in the stream of this name, such as ``"ledger"``. Give one of the three at the most.
            type: they are of this type, such as ``"TaskStarted"``, or of one of several.
            after: they have a higher position.
            before: they have a lower position.
            since: they were recorded then or later. A naive datetime is local time.
            until: they were recorded then or earlier. A naive datetime is local time.
            limit: at most so many, counted from where the view begins.
            newest_first: the view begins with the latest event and goes back.

        Raises:
            TypeError, ValueError: an argument that can't be meant.
            UnknownTypeError: no type of event is called so, in this ttasks or in the ledger (a ValueError too).
        """
        given: dict[str, Any] = {
            "stream": _stream(task, graph, stream),
            "types": None if type is None else self._types(type),
            "after": _whole_number(after, "after"),
            "before": _whole_number(before, "before"),
            "since": _moment(since, "since"),
            "until": _moment(until, "until"),
            "limit": _whole_number(limit, "limit"),
            "newest_first": _flag(newest_first, "newest_first"),
        }
        known = {name: value for name, value in given.items() if value is not None}
        return EventView(self._readers, self._closed, replace(self._wanted, **known), self._check_open)

    def _types(self, given: object) -> tuple[str, ...]:
        names = _types(given)
        self._check_open()
        for name in names:
            self._readers.check_type(name)
        return names

    def __iter__(self) -> Iterator[RecordedEvent]:
        self._check_open()
        return self._readers.matching(self._wanted)

    def __len__(self) -> int:
        self._check_open()
        return self._readers.count_matching(self._wanted)

    def follow(self, timeout: float | None = None) -> Iterator[RecordedEvent]:
        """Yield events as they are recorded, by any process: from now on, or from where `after` or `since` says.

        It ends when the store is closed, after `limit` events, or after `timeout` seconds without one (None: never).
        It looks for events twenty times a second, and holds nothing open meanwhile.

        Raises:
            TypeError, ValueError: a time-out that can't be meant, or a view with `before`, `until` or `newest_first`.
        """
        wanted = self._wanted
        if wanted.newest_first or wanted.before is not None or wanted.until is not None:
            raise ValueError("what is yet to come has no before, until or newest_first: follow a view without them")
        wait_s = _seconds(timeout)
        self._check_open()
        if wanted.after is None:
            begins_now = wanted.since is None
            wanted = replace(wanted, after=self._readers.head_position() if begins_now else 0)
        return self._follow(wanted, wait_s)

    def _follow(self, wanted: EventFilter, wait_s: float | None) -> Iterator[RecordedEvent]:
        try:
            yield from self._as_recorded(wanted, wait_s)
        except LedgerError:
            if self._readers.path is not None or not self._closed.is_set():
                raise  # but a ledger in memory goes with its store, between any two questions

    def _as_recorded(self, wanted: EventFilter, wait_s: float | None) -> Iterator[RecordedEvent]:
        after, left = wanted.after or 0, wanted.limit
        heard_s = clock.monotonic_s()
        while left is None or left > 0:
            was_closed = self._closed.is_set()
            head = self._readers.head_position()
            if head > after:
                for event in self._readers.matching(replace(wanted, after=after, before=head + 1, limit=left)):
                    yield event
                    heard_s = clock.monotonic_s()
                    left = left - 1 if left is not None else None
                after = head
            if was_closed or isinstance(self._readers, Past):
                return  # what was recorded before the end is out, and no more will come
            pause_s = POLL_S if wait_s is None else min(POLL_S, heard_s + wait_s - clock.monotonic_s())
            if pause_s <= 0:
                return
            clock.wait(self._closed, pause_s)

    def __repr__(self) -> str:
        default = vars(EventFilter())
        return _shown(
            "EventView", **{name: value for name, value in vars(self._wanted).items() if value != default[name]}
        )


class RunView:
    """The runs of a ledger's graphs, deleted graphs included, each a `Run`: oldest first. ``len`` counts them.

    ``store.runs`` is all of them; calling a view gives one of fewer. Each iteration reads anew.
    """

    def __init__(
        self,
        readers: Readers | Past,
        check_open: Callable[[], None],
        graph_id: str | None = None,
        *,
        newest_first: bool = False,
        limit: int | None = None,
    ) -> None:
        self._readers = readers
        self._check_open = check_open
        self._graph_id = graph_id
        self._newest_first = newest_first
        self._limit = limit

    def __call__(
        self,
        *,
        graph: TaskGraph | str | None = None,
        newest_first: bool | None = None,
        limit: int | None = None,
    ) -> RunView:
        """Return a view of some of them; what is given replaces what was given before.

        Args:
            graph: the runs of this graph, or of the one with this id.
            newest_first: the view begins with the latest run and goes back.
            limit: at most so many, counted from where the view begins.

        Raises:
            TypeError, ValueError: an argument that can't be meant.
        """
        newest = _flag(newest_first, "newest_first")
        most = _whole_number(limit, "limit")
        return RunView(
            self._readers,
            self._check_open,
            self._graph_id if graph is None else _id(graph, TaskGraph, "graph"),
            newest_first=self._newest_first if newest is None else newest,
            limit=self._limit if most is None else most,
        )

    def __iter__(self) -> Iterator[Run]:
        self._check_open()
        return self._runs()

    def _runs(self) -> Iterator[Run]:
        found = self._readers.runs(self._graph_id, newest_first=self._newest_first, limit=self._limit)
        runners: dict[int, Runner] = {}
        for state in found:
            if state.runner not in runners:
                runners[state.runner] = self._runner(state.runner)
            yield Run._of(state, runners[state.runner])

    def _runner(self, position: int) -> Runner:
        state = self._readers.runner(position)
        if state is None:
            raise LedgerError(f"no runner is registered at event {position}; `ttasks verify` says more")
        return Runner._of(state)

    def __len__(self) -> int:
        self._check_open()
        return len(self._readers.runs(self._graph_id, limit=self._limit))

    def __repr__(self) -> str:
        return _shown("RunView", graph=self._graph_id, newest_first=self._newest_first or None, limit=self._limit)


def _shown(name: str, **given: object) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items() if value is not None)})"


def _id(given: object, kind: type[Task] | type[TaskGraph], name: str) -> str:
    if isinstance(given, kind):
        return given.id
    if not isinstance(given, str):
        raise TypeError(f"{name} must be a {kind.__name__} or the id of one, got {type(given).__name__}")
    return given


def _stream(task: object, graph: object, stream: object) -> str | None:
    given = [value for value in (task, graph, stream) if value is not None]
    if len(given) > 1:
        raise ValueError("an event is in one stream: give one of task, graph and stream")
    if task is not None:
        return f"task-{_id(task, Task, 'task')}"
    if graph is not None:
        return f"graph-{_id(graph, TaskGraph, 'graph')}"
    if stream is not None and not isinstance(stream, str):
        raise TypeError(f"stream must be a str, got {type(stream).__name__}")
    return stream


def _types(given: object) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"type must be the name of a type of event, or several, got {name!r}")
    if not names:
        raise ValueError("type must name a type of event at least")
    return names


def _whole_number(value: object, name: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{name} must not be negative, got {value}")
    return value


def _flag(value: object, name: str) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
    return value


def _moment(value: object, name: str) -> datetime | None:
    if value is not None and not isinstance(value, datetime):
        raise TypeError(f"{name} must be a datetime, got {type(value).__name__}")
    return utc(value) if value is not None else None


def utc(moment: datetime) -> datetime:
    """Return `moment` as aware UTC; a naive one is local time.

    Raises:
        ValueError: in UTC it is not in the calendar.
    """
    try:
        return clock.aware(moment)
    except OverflowError as error:
        raise ValueError(f"{moment} is no time in UTC: {error}") from error


def _seconds(timeout: object) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout must be a number of seconds or None, got {type(timeout).__name__}")
    if not timeout >= 0:
        raise ValueError(f"timeout must be 0 or more, got {timeout!r}")
    return timeout


public(EventView, RunView)
