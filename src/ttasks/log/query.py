"""Which events are wanted, and the SQL that finds them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from ttasks.events.codec import iso

ENVELOPE: Final = "position, stream, version, type, type_version, recorded_at, runner, cause, data, hash"
POSITION_MAX: Final = 2**63 - 1
"""The last position that SQLite can count to."""


@dataclass(frozen=True)
class EventFilter:
    """Which events are wanted, and in which order. What is given has to hold, all of it.

    `kind` is that of their streams (``task``, ``graph``, ``runner``); `runner` is the position of the RunnerStarted of
    the process that recorded them; `types` are the types that are wanted (none:
    all), `without` those that are not; `after` and `before` are positions and don't count themselves, `since` and
    `until` are times and do; `limit` is how many at the most.
    """

    stream: str | None = None
    kind: str | None = None
    runner: int | None = None
    types: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    after: int | None = None
    before: int | None = None
    since: datetime | None = None
    until: datetime | None = None
    limit: int | None = None
    newest_first: bool = False

    def count(self) -> tuple[str, list[Any]]:
        """Return the query that counts them, and its parameters."""
        where, parameters = self._where()
        if self.limit is None:
            return f"SELECT count(*) FROM events WHERE {where}", parameters  # noqa: S608
        query = f"SELECT count(*) FROM (SELECT 1 FROM events WHERE {where} LIMIT ?)"  # noqa: S608
        return query, [*parameters, min(self.limit, POSITION_MAX)]

    def page(self, size: int, last: tuple[Any, ...] | None) -> tuple[str, list[Any]]:
        """Return the query for the next `size` rows, `last` being the last one of the page before, and its parameters.

        Within a stream the rows come in the order of its index, so that a page costs no more when the stream is long.
        """
        where, parameters = self._where()
        order, place = ("version", 2) if self.stream is not None else ("position", 0)
        if last is not None:
            where += f" AND {order} {'<' if self.newest_first else '>'} ?"
            parameters.append(last[place])
        order += " DESC" if self.newest_first else ""
        return f"SELECT {ENVELOPE} FROM events WHERE {where} ORDER BY {order} LIMIT {size}", parameters  # noqa: S608

    def _where(self) -> tuple[str, list[Any]]:
        conditions: list[str] = ["1"]
        parameters: list[Any] = []

        def add(condition: str, *values: Any) -> None:
            conditions.append(condition)
            parameters.extend(values)

        if self.stream is not None:
            add("stream = ?", self.stream)
        if self.kind is not None:
            # The + keeps SQLite from the index of the streams: the log is read once, in its order, not sorted.
            add("+stream GLOB ?", f"{self.kind}-*")
        if self.runner is not None:
            add("runner = ?", self.runner)
        if self.types:
            add(f"type IN ({', '.join('?' * len(self.types))})", *self.types)
        if self.without:
            add(f"type NOT IN ({', '.join('?' * len(self.without))})", *self.without)
        if self.after is not None:
            add("position > ?", min(self.after, POSITION_MAX))
        if self.before is not None:
            add("position < ?", min(self.before, POSITION_MAX))
        if self.since is not None:
            add("recorded_at >= ?", iso(self.since))
        if self.until is not None:
            add("recorded_at <= ?", iso(self.until))
        return " AND ".join(conditions), parameters
