"""Checking a ledger against its promises, and making its rows again from its log."""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, Literal

from ttasks.errors import TtasksError
from ttasks.events.codec import FACT_TYPES, to_json
from ttasks.events.envelope import OpaqueEvent
from ttasks.log.chain import GENESIS, event_hash
from ttasks.log.event_log import EventLog
from ttasks.log.projection import TABLES, key_columns, put, select
from ttasks.log.query import ENVELOPE
from ttasks.log.reading import Readers, event_of, in_one_view
from ttasks.log.replay import Replay
from ttasks.state import rows

PROBLEMS_MAX: Final = 50
_LONE_SURROGATE: Final = re.compile(r"\\ud[89a-f][0-9a-f]{2}")
"""What pydantic reads no text with; any character in its place has the same form."""
Promise = Literal["integrity", "order", "completeness", "form", "rows"]


@dataclass(frozen=True)
class Problem:
    """One broken promise. `position` is the event it shows at, None where it is not at one event.

    `promise`: ``integrity`` (an event is not what was hashed), ``order`` (it can't be there), ``completeness``
    (events are missing), ``form`` (its data can't be read), ``rows`` (a row is not what its events say).
    """

    promise: Promise
    position: int | None
    text: str

    def __str__(self) -> str:
        place = f"event {self.position}" if self.position is not None else "the ledger"
        return f"{self.promise}: {place}: {self.text}"


@dataclass
class Report:
    """What `verify` found. `head` is the hash (hex) of the last event: keep it elsewhere, and a cut tail shows.

    `problems` is in the log's order, broken rows last; it stops at `PROBLEMS_MAX`.
    """

    events: int = 0
    head: str = GENESIS.hex()
    problems: list[Problem] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """True when every promise holds."""
        return not self.problems

    def _add(self, promise: Promise, position: int | None, text: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(Problem(promise, position, text))


def verify(readers: Readers, *, head: str | None = None) -> Report:
    """Check every promise that a ledger's content can break, in one consistent view of it.

    Args:
        readers: the ledger.
        head: the hash (hex) of an event that is known to be in it: a chain alone can't show that its tail was cut.

    Returns:
        The report; a broken promise is in it, not raised.
    """

    def check(connection: sqlite3.Connection) -> Report:
        report = Report()
        replay = Replay()
        knows_head = _check_events(connection, replay, report, head)
        if head is not None and not knows_head:
            text = f"no event has the hash {head}: the events up to it were cut off, or written anew"
            report._add("completeness", None, text)
        _check_rows(connection, replay, report)
        return report

    return readers.ask(in_one_view(check))


def _check_events(connection: sqlite3.Connection, replay: Replay, report: Report, head: str | None) -> bool:
    before, last, knows_head = GENESIS, 0, False
    broken_streams: set[str] = set()
    for row in connection.execute(f"SELECT {ENVELOPE} FROM events ORDER BY position"):  # noqa: S608
        position, stream, version, *_, stored_hash = row
        report.events += 1
        if position != last + 1:
            missing = (
                f"events {last + 1} to {position - 1} are missing" if position > last + 1 else "it is out of place"
            )
            report._add("completeness", position, missing)
        if event_hash(before, row[:-1]) != stored_hash:
            report._add(
                "integrity", position, "its hash does not fit what is stored: it, or what came before, was changed"
            )
        before, last = stored_hash, position
        knows_head = knows_head or (head is not None and stored_hash.hex() == head.lower())
        if stream in broken_streams:
            continue
        if version != replay.version(stream) + 1:
            report._add("order", position, f"it is version {version} of {stream}, after {replay.version(stream)}")
            broken_streams.add(stream)
            continue
        problem = _check_meaning(row, replay)
        if problem is not None:
            report._add(*problem)
            broken_streams.add(stream)
    report.head = before.hex()
    return knows_head


def _check_meaning(row: tuple[Any, ...], replay: Replay) -> tuple[Promise, int, str] | None:
    position, type_, data = row[0], row[3], row[8]
    try:
        event = event_of(row)
        if not isinstance(event.fact, OpaqueEvent):
            _validator(type_).validate_json(_LONE_SURROGATE.sub(r"\\ufffd", data))
    except (TtasksError, ValueError) as error:
        return "form", position, f"its data is not that of a {type_}: {error}"
    try:
        replay.apply(event)
    except TtasksError as error:
        return "order", position, str(error)
    return None


@cache
def _validator(type_name: str) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(next(fact_type for fact_type in FACT_TYPES if fact_type.__name__ == type_name))


def _check_rows(connection: sqlite3.Connection, replay: Replay, report: Report) -> None:
    expected: dict[str, dict[rows.Row, rows.Row]] = {table: {} for table in TABLES}
    for table, row in replay.rows():
        expected[table][_key(table, row)] = row
    for table, columns in TABLES.items():
        should = expected[table]
        for row in connection.execute(select(table)):
            key = _key(table, row)
            wanted = should.pop(key, None)
            if wanted is None:
                report._add("rows", None, f"{table} has a row {_name(key)} that no event speaks of")
            elif wanted != row:
                wrong = [
                    f"{column} is {_shown(is_)}, its events say {_shown(should_be)}"
                    for column, is_, should_be in zip(columns, row, wanted, strict=True)
                    if is_ != should_be
                ]
                report._add("rows", None, f"row {_name(key)} of {table}: {'; '.join(wrong)}")
        for key in should:
            report._add("rows", None, f"{table} lacks the row {_name(key)}")


def _key(table: str, row: rows.Row) -> rows.Row:
    columns = TABLES[table]
    return tuple(row[columns.index(column)] for column in key_columns(table))


def _name(key: rows.Row) -> str:
    return "/".join(map(str, key))


def _shown(value: object) -> str:
    text = to_json(value) if isinstance(value, str | int | float | None) else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def rebuild(log: EventLog) -> int:
    """Make every row again from the log, in one commit; return how many events were folded.

    Raises:
        TtasksError: the log can't be folded (`verify` says where). The rows stay as they were.
        LedgerUnwritableError: the disk refused. The rows stay as they were.
    """

    def refill(connection: sqlite3.Connection) -> int:
        replay = Replay()
        count = 0
        for row in connection.execute(f"SELECT {ENVELOPE} FROM events ORDER BY position"):  # noqa: S608
            replay.apply(event_of(row))
            count += 1
        for table, state_row in replay.rows():
            connection.execute(put(table), state_row)
        return count

    return log.replace_rows(tuple(TABLES), refill)
