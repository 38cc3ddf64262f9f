"""Checking a ledger against its promises, and making its rows again from its log.

What is checked may be anything that somebody with the file got into it: nothing in it may end in an exception.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Final, Literal

from ttasks.errors import DamagedLedgerError, TtasksError, UnknownEventError
from ttasks.events.codec import to_json
from ttasks.events.envelope import OpaqueEvent
from ttasks.events.facts import LedgerCreated, RunnerStarted, TaskImported, TaskRevised
from ttasks.log import migrate, schema
from ttasks.log.chain import GENESIS, event_hash
from ttasks.log.event_log import EventLog
from ttasks.log.files import SQLITE_ERRORS, is_damage, read_version
from ttasks.log.form import envelope_problem, fact_problem, state_problem
from ttasks.log.older import stored_columns
from ttasks.log.projection import TABLES, key_columns, put, select
from ttasks.log.query import ENVELOPE
from ttasks.log.reading import Readers, event_of, in_one_view
from ttasks.log.replay import Replay
from ttasks.state import rows

PROBLEMS_MAX: Final = 50
FILE_PROBLEMS_MAX: Final = 5
Promise = Literal["integrity", "order", "completeness", "form", "rows", "schema", "file"]
_STREAM_OF: Final = {
    "tasks": ("task", "id"),
    "attempts": ("task", "task_id"),
    "graphs": ("graph", "id"),
    "graph_tasks": ("graph", "graph_id"),
    "graph_dependencies": ("graph", "graph_id"),
    "runs": ("graph", "graph_id"),
    "runners": ("runner", "id"),
    "tool_calls": ("task", "task_id"),
    "permissions": ("task", "task_id"),
    "model_calls": ("task", "task_id"),
}
"""For each table the kind of stream that its rows follow from, and the column that names it."""
_ALL_EVENTS: Final = f"SELECT {ENVELOPE} FROM events ORDER BY position"  # noqa: S608


@dataclass(frozen=True)
class Problem:
    """One broken promise. `position` is the event it shows at, None where it is not at one event.

    `promise`: ``integrity`` (an event is not what was hashed), ``order`` (it can't be there), ``completeness``
    (events are missing), ``form`` (it can't be read as what it says it is), ``rows`` (a row is not what its events
    say), ``schema`` (a table, column, index, view or trigger is missing or another), ``file`` (SQLite can't read it).
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

    `problems` is in the log's order, then broken rows, the schema, the file; it stops at `PROBLEMS_MAX`.
    """

    events: int = 0
    head: str = GENESIS.hex()
    problems: list[Problem] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """True when every promise holds."""
        return not self.problems

    @property
    def first(self) -> Problem | None:
        """The problem at the first bad event; where none is at an event, the first of all; None where it is clean."""
        at_events = [problem for problem in self.problems if problem.position is not None]
        return next(iter([*at_events, *self.problems]), None)

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

    Raises:
        LedgerUnwritableError: the file can't be read now, for a reason that is not in its content.
    """

    def check(connection: sqlite3.Connection) -> Report:
        report = Report()
        texts_as = connection.text_factory
        connection.text_factory = _as_stored
        try:
            _verify(connection, report, head)
        finally:
            connection.text_factory = texts_as
        return report

    try:
        return readers.ask(in_one_view(check))
    except DamagedLedgerError as error:
        report = Report()
        report._add("file", None, f"it can't be read ({error.__cause__}): nothing was compared")
        return report


def _verify(connection: sqlite3.Connection, report: Report, head: str | None) -> None:
    log = _LogCheck(report, head)
    version = read_version(connection)
    if log.read(connection):
        _check_rows(connection, log, report, version)
    with _reporting_damage(report, "schema", "it"):
        _check_schema(connection, report, version)
    with _reporting_damage(report, "file", "it"):
        _check_file(connection, report)


@contextlib.contextmanager
def _reporting_damage(report: Report, promise: Promise, what: str) -> Iterator[None]:
    """Let what can't be read be a problem in the report, where that is for what is in the file."""
    try:
        yield
    except SQLITE_ERRORS as error:
        if not is_damage(error):
            raise
        report._add(promise, None, f"{what} can't be read: {' '.join(str(error).split())}")


def _as_stored(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


class _LogCheck:
    """One walk through the log. A stream whose events can't be followed any further is in `broken`."""

    def __init__(self, report: Report, head: str | None) -> None:
        self.replay = Replay()
        self.broken: set[str] = set()
        self._report = report
        self._head = head.lower() if head is not None else None
        self._knows_head = head is None
        self._last = 0
        self._before = GENESIS
        # What the hash before should have been: where only that was changed, what follows is as it was.
        self._instead: bytes | None = None
        self._runners: set[int] = set()

    def read(self, connection: sqlite3.Connection) -> bool:
        """Check every event; return whether all of them could be read."""
        try:
            for row in connection.execute(_ALL_EVENTS):
                self._report.events += 1
                self._check(row)
        except SQLITE_ERRORS as error:
            if not is_damage(error):
                raise
            promise: Promise = "schema" if _is_about_sql(error) else "file"
            position = self._last + 1 if self._report.events else None
            text = f"it can't be read ({error}): neither it, nor what follows, nor any row was compared"
            self._report._add(promise, position, text)
            return False
        self._report.head = self._before.hex()
        if not self._report.events:
            self._report._add("completeness", None, "it has no events at all, not even its first")
        if not self._knows_head:
            text = f"no event has the hash {self._head}: the events up to it were cut off, or written anew"
            self._report._add("completeness", None, text)
        return True

    def _check(self, row: tuple[Any, ...]) -> None:
        position, stream, stored = row[0], row[1], row[-1]
        if not isinstance(position, int):  # the table was made anew, without its key
            self._report._add("form", None, f"an event has the position {_shown(position)}")
            return
        comes_next = position == self._last + 1
        if position <= self._last:
            self._report._add("completeness", position, "it is out of place: positions are 1, 2, 3 …")
        elif not comes_next:
            up_to = f" and so is what follows up to {position - 1}" if position > self._last + 2 else ""
            self._report._add("completeness", self._last + 1, f"it is missing{up_to}")
        self._last = max(position, self._last)
        problem = envelope_problem(row)
        if problem is not None:
            self._report._add("form", position, problem)
        self._check_hash(row, comes_next)
        self._knows_head = self._knows_head or (isinstance(stored, bytes) and stored.hex() == self._head)
        if problem is not None:
            self.broken.add(str(stream))
            return
        self._check_places(row)
        if stream not in self.broken:
            self._check_meaning(row)

    def _check_hash(self, row: tuple[Any, ...], comes_next: bool) -> None:
        position, columns, stored = row[0], row[:-1], row[-1]
        computed = _hash(self._before, columns)
        if stored == computed or (self._instead is not None and stored == _hash(self._instead, columns)):
            self._instead = None
        else:
            # After a gap there is nothing that the hash could be compared with.
            if comes_next:
                text = "its hash does not fit what is stored: it, or what came before, was changed"
                self._report._add("integrity", position, text)
            self._instead = computed
        self._before = stored if isinstance(stored, bytes) else computed or GENESIS

    def _check_places(self, row: tuple[Any, ...]) -> None:
        """Check what an event says of other events."""
        position, type_, runner, cause = row[0], row[3], row[6], row[7]
        if position == 1 and type_ != LedgerCreated.__name__:
            self._report._add("order", position, f"it is a {type_}: a ledger begins with its LedgerCreated")
        if type_ == RunnerStarted.__name__:
            self._runners.add(position)
        if (runner is None) != (position == 1) or (runner is not None and runner not in self._runners):
            self._report._add("order", position, f"its runner is {runner}: no RunnerStarted before it is there")
            self._runners.add(runner)  # said once, not for every event of that runner
        if cause is not None and not 1 <= cause < position:
            self._report._add("order", position, f"its cause is {cause}, which is no event before it")

    def _check_meaning(self, row: tuple[Any, ...]) -> None:
        position, stream, version = row[:3]
        follows = f"what follows in {stream} was not checked"
        if version != self.replay.version(stream) + 1:
            text = f"it is version {version} of {stream}, after {self.replay.version(stream)}; {follows}"
            self._report._add("order", position, text)
            self.broken.add(stream)
            return
        problem = self._fold(row)
        if problem is not None:
            promise, text = problem
            self._report._add(promise, position, f"{text}; {follows}")
            self.broken.add(stream)

    def _fold(self, row: tuple[Any, ...]) -> tuple[Promise, str] | None:
        type_, type_version, data = row[3], row[4], row[8]
        try:
            event = event_of(row)
            problem = None if isinstance(event.fact, OpaqueEvent) else fact_problem(event.fact, type_version, data)
            if problem is not None:
                return "form", f"its data is not that of a {type_}: {problem}"
            fold = self.replay.apply(event)
            if isinstance(event.fact, TaskRevised | TaskImported):
                problem = state_problem(fold.state)
                if problem is not None:
                    return "form", f"its data is not that of a {type_}: {problem}"
        except UnknownEventError as error:
            return "form", str(error)
        except DamagedLedgerError as error:
            return ("form" if error.__cause__ is not None else "order"), str(error)
        except TtasksError as error:
            return "order", str(error)
        except Exception as error:  # noqa: BLE001 - what others wrote may lead anywhere in our code, and is reported
            return "form", f"its data is not that of a {type_}: {error!r}"
        return None


def _is_about_sql(error: BaseException) -> bool:
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR


def _hash(before: bytes, columns: tuple[Any, ...]) -> bytes | None:
    try:
        return event_hash(before, columns)
    except UnicodeEncodeError:  # a text that is not UTF-8: nothing that ttasks hashes
        return None


def _check_rows(connection: sqlite3.Connection, log: _LogCheck, report: Report, version: int) -> None:
    """Compare every row, but for those that follow from a broken stream, as far as a ledger of this version has it."""
    expected: dict[str, dict[rows.Row, rows.Row]] = {table: {} for table in TABLES}
    try:
        for table, row in log.replay.rows():
            if _stream(table, row) not in log.broken:
                expected[table][_key(table, row)] = row
    except Exception as error:  # noqa: BLE001 - as above
        report._add("rows", None, f"they were not compared: what the events say can't be a row: {error!r}")
        return
    for table, columns in TABLES.items():
        with _reporting_damage(report, "rows", table):
            stored = columns if version >= migrate.SCHEMA_VERSION else stored_columns(connection, table)
            if stored:
                _check_table(connection, table, expected[table], log.broken, report, stored)


def _check_table(
    connection: sqlite3.Connection,
    table: str,
    should: dict[rows.Row, rows.Row],
    broken: set[str],
    report: Report,
    stored: Collection[str],
) -> None:
    for row in connection.execute(select(table)):
        key = _key(table, row)
        wanted = should.pop(key, None)
        if wanted is None:
            if _stream(table, row) not in broken:
                report._add("rows", None, f"{table} has a row {_name(key)} that no event speaks of")
        elif wanted != row:
            wrong = [
                f"{column} is {_shown(is_)}, its events say {_shown(should_be)}"
                for column, is_, should_be in zip(TABLES[table], row, wanted, strict=True)
                if is_ != should_be and column in stored
            ]
            if wrong:
                report._add("rows", None, f"row {_name(key)} of {table}: {'; '.join(wrong)}")
    for key in should:
        report._add("rows", None, f"{table} lacks the row {_name(key)}")


def _key(table: str, row: rows.Row) -> rows.Row:
    columns = TABLES[table]
    return tuple(row[columns.index(column)] for column in key_columns(table))


def _stream(table: str, row: rows.Row) -> str:
    kind, column = _STREAM_OF[table]
    return f"{kind}-{row[TABLES[table].index(column)]}"


def _name(key: rows.Row) -> str:
    return "/".join(map(str, key))


def _shown(value: object) -> str:
    is_json = isinstance(value, str | int | None) or (isinstance(value, float) and isfinite(value))
    text = to_json(value) if is_json else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _check_schema(connection: sqlite3.Connection, report: Report, version: int) -> None:
    """Compare the schema with that of a ledger of its version."""
    if version < 1:
        report._add("schema", None, f"its schema_version is {version}, which is that of no ledger")
        version = migrate.SCHEMA_VERSION
    for difference in schema.differences(connection, version):
        report._add("schema", None, difference.text)


def _check_file(connection: sqlite3.Connection, report: Report) -> None:
    """Let SQLite check the file: an index that lacks an entry hides events from whoever asks by it."""
    for (text,) in connection.execute(f"PRAGMA integrity_check({FILE_PROBLEMS_MAX})").fetchall():
        if text != "ok":
            report._add("file", None, f"SQLite finds it damaged: {' '.join(text.split())}")


def rebuild(log: EventLog) -> int:
    """Make every row again from the log, in one commit; return how many events were folded.

    Raises:
        UnknownEventError, DamagedLedgerError: the log can't be folded (`verify` says why). The rows stay as they were.
        LedgerUnwritableError: the disk refused. The rows stay as they were.
    """

    def refill(connection: sqlite3.Connection) -> int:
        replay = Replay()
        count = 0
        is_folded = False
        try:
            for row in connection.execute(_ALL_EVENTS):
                replay.apply(event_of(row))
                count += 1
            is_folded = True
            for table, state_row in replay.rows():
                connection.execute(put(table), state_row)
        except UnknownEventError:
            raise
        except Exception as error:
            if isinstance(error, SQLITE_ERRORS) and not is_damage(error):
                raise
            what = "put into rows" if is_folded else f"added up at event {count + 1}"
            text = f"the log can't be {what}: {error}. No row was changed; `ttasks verify` says more"
            raise DamagedLedgerError(text) from error
        return count

    return log.replace_rows(tuple(TABLES), refill)
