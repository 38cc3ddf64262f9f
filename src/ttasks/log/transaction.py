"""One write transaction: check what each caller expects, give out places, chain, fold, insert, commit."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from ttasks.errors import DamagedLedgerError, LedgerUnwritableError, StreamConflictError
from ttasks.events.codec import as_stored, encode, iso
from ttasks.events.envelope import RecordedEvent, recorded_event
from ttasks.events.facts import (
    Fact,
    GraphRunResumed,
    GraphRunStarted,
    LedgerCreated,
    RunnerStarted,
    TaskFailed,
    TaskStarted,
    TaskSucceeded,
)
from ttasks.events.status import RunStatus
from ttasks.log.chain import GENESIS, event_hash
from ttasks.log.migrate import SCHEMA_VERSION
from ttasks.log.place import other_names
from ttasks.log.projection import LEDGER_STREAM, TABLES, GraphFold, StreamFold, TaskFold, load_fold
from ttasks.log.query import ENVELOPE
from ttasks.log.reading import event_of
from ttasks.log.redaction import Redaction
from ttasks.log.schema import refuse_to_write
from ttasks.log.secrets import withhold
from ttasks.state.task import TaskState

FOLDS_KEPT_MAX: Final = 20_000
STARTS: Final = (TaskStarted, GraphRunStarted, GraphRunResumed)
"""The facts with which work begins, or goes on."""


@dataclass(slots=True)
class Owned:
    """What facts of a running attempt expect: that this attempt still runs, or waits for its retry.

    A start, success or failure is refused too while a cancel was asked for that its runner has not heard of.
    """

    attempt: int
    knows_cancel: bool = False


@dataclass(slots=True)
class OwnedRun:
    """What facts of a running run expect: that this process still runs it."""

    run: int


@dataclass(eq=False, slots=True)
class Batch:
    """Facts for one stream, oldest first.

    `expected` is how many events of the stream the caller has seen (0: it must not exist yet), or `Owned`, or
    `OwnedRun`, or None for requests, which conflict with nothing. `cause` is the position of the event that led to
    these facts, or an earlier batch of the same append, whose last event did. `redaction` is used in place of the
    log's own.
    """

    stream: str
    facts: Sequence[Fact]
    expected: int | Owned | OwnedRun | None
    cause: int | Batch | None = None
    redaction: Redaction | None = None


@dataclass(slots=True)
class Appended:
    """What became of a batch: its facts as recorded, and the state of its stream after them."""

    records: list[RecordedEvent]
    state: Any


Outcomes = list[list[Appended] | Exception]
"""For each request of a commit what was appended for it, or why it was refused."""


@dataclass(slots=True)
class Encoded:
    """A batch with its facts in the form that is stored, made before the lock is taken."""

    batch: Batch
    facts: list[tuple[Fact, str]]

    @classmethod
    def of(cls, batch: Batch, key: str, redaction: Redaction | None) -> Encoded:
        """Encode a batch; what must not be recorded is withheld first."""
        if batch.redaction is not None:
            redaction = batch.redaction
        return cls(batch, [as_stored(withhold(fact, key, redaction)) for fact in batch.facts])


class _Staged:
    """What a transaction is about to write, request by request."""

    def __init__(self, position: int, before: bytes, recorded_at: datetime, runner: int | None) -> None:
        self.position = position
        self.hash = before
        self.recorded_at = recorded_at
        self.recorded_at_text = iso(recorded_at)
        self.runner = runner
        self.folds: dict[str, StreamFold] = {}
        self.rows: list[tuple[Any, ...]] = []


class Transaction:
    """The writer's side of one connection. Only one thread uses it at a time, under the writer lock.

    `runner` is the position of this process's RunnerStarted, None until one is committed. `path` is the ledger's file,
    and `names` how many names it has: with more than one, ends are recorded, and nothing starts.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path | None = None) -> None:
        self._connection = connection
        self._path = path
        self.names = 1
        self._head = 0
        self._head_hash = GENESIS
        self._folds: dict[str, StreamFold] = {}
        self._data_version: int | None = None
        self._schema_cookie: int | None = None
        self.runner: int | None = None
        self._is_whole = True

    def ledger(self) -> LedgerCreated:
        """Return what event 1 says.

        Raises:
            DamagedLedgerError: it is missing, or not a LedgerCreated.
        """
        row = self._connection.execute(f"SELECT {ENVELOPE} FROM events WHERE position = 1").fetchone()  # noqa: S608
        fact = event_of(row).fact if row is not None else None
        if not isinstance(fact, LedgerCreated):
            raise DamagedLedgerError("event 1 is not a LedgerCreated; nothing was written. `ttasks verify` says more")
        return fact

    def is_empty(self) -> bool:
        """Return whether nothing was recorded yet.

        Raises:
            DamagedLedgerError: no event is there, but rows are, which follow from events.
        """
        if self._connection.execute("SELECT 1 FROM events LIMIT 1").fetchone() is not None:
            return False
        for table in TABLES:
            if self._connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is not None:  # noqa: S608
                raise DamagedLedgerError(f"the log is empty, but {table} has rows: it was emptied; nothing was written")
        return True

    def commit(self, group: Sequence[Sequence[Encoded]], at: Callable[[], datetime], committed: list[Outcomes]) -> None:
        """Append what every request of the group wants, in one commit; a refusal of one leaves the others alone.

        Args:
            group: the requests.
            at: what tells the time of the commit.
            committed: gets the outcome of each request as soon as they are committed, also where this call is
                interrupted right after that.

        Raises:
            sqlite3.Error: the database refused. Nothing of any request was written.
            LedgerUnwritableError, DamagedLedgerError: the schema is another by now. Nothing of any request was written.
        """
        connection = self._connection
        outcomes: Outcomes = []
        is_complete = False
        if not self._is_whole:
            self._recover()
        self._is_whole = False
        try:
            connection.execute("BEGIN IMMEDIATE")
            self._look_for_others()
            staged = _Staged(self._head, self._head_hash, at(), self.runner)
            outcomes += [self._stage_request(staged, request) for request in group]
            self._write(staged)
            is_complete = True
            connection.execute("COMMIT")
            committed.append(outcomes)
        except BaseException as error:
            if is_complete and not committed and not isinstance(error, sqlite3.Error) and not connection.in_transaction:
                committed.append(outcomes)  # Ctrl-C came right after the COMMIT
            self._recover()
            raise
        self._head, self._head_hash, self.runner = staged.position, staged.hash, staged.runner
        self._keep(staged.folds)
        self._is_whole = True

    def _recover(self) -> None:
        """Undo what was not committed, and forget what was cached: it may not be what is stored."""
        self._folds.clear()
        self._head = -1
        self._data_version = None
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self._is_whole = True

    def _look_for_others(self) -> None:
        """Read the head, and whether the schema is another, where anybody but this connection has committed."""
        (data_version,) = self._connection.execute("PRAGMA data_version").fetchone()
        if data_version != self._data_version:
            self._check_schema()
            self._read_head()
            self._data_version = data_version

    def _check_schema(self) -> None:
        # A newer ttasks may have opened the ledger, and migrated it, since this process did.
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version != SCHEMA_VERSION:
            raise LedgerUnwritableError(
                f"the ledger was migrated to schema_version {version} while it was in use here, and this ttasks knows "
                f"{SCHEMA_VERSION}; nothing was written. Go on with the ttasks that migrated it"
            )
        (cookie,) = self._connection.execute("PRAGMA schema_version").fetchone()
        if cookie != self._schema_cookie:
            refuse_to_write(self._connection)
            self._schema_cookie = cookie

    def _read_head(self) -> None:
        head = self._connection.execute("SELECT position, hash FROM events ORDER BY position DESC LIMIT 1").fetchone()
        position, before = head if head is not None else (0, GENESIS)
        if position != self._head:
            self._folds.clear()
        self._head, self._head_hash = position, before

    def _keep(self, folds: dict[str, StreamFold]) -> None:
        if len(self._folds) + len(folds) > FOLDS_KEPT_MAX:
            self._folds.clear()
        for stream, fold in folds.items():
            if isinstance(fold.state, TaskState) and fold.state.status.is_sink:
                self._folds.pop(stream, None)
            else:
                self._folds[stream] = fold

    def _stage_request(self, staged: _Staged, request: Sequence[Encoded]) -> list[Appended] | Exception:
        position, before, rows, runner = staged.position, staged.hash, len(staged.rows), staged.runner
        folds: dict[str, StreamFold] = {}
        try:
            appended = self._stage_batches(staged, request, folds)
        except Exception as refusal:  # noqa: BLE001 - it goes to the caller whose request this is, and to no other
            staged.position, staged.hash, staged.runner = position, before, runner
            del staged.rows[rows:]
            return refusal
        staged.folds.update(folds)
        return appended

    def _stage_batches(
        self, staged: _Staged, request: Sequence[Encoded], folds: dict[str, StreamFold]
    ) -> list[Appended]:
        appended: list[Appended] = []
        last: dict[int, int] = {}
        for encoded in request:
            batch = encoded.batch
            fold = folds.get(batch.stream)
            if fold is None:
                fold = folds[batch.stream] = self._fold(staged, batch.stream).copy()
            self._check(staged, batch, fold)
            cause = last[id(batch.cause)] if isinstance(batch.cause, Batch) else batch.cause
            records = [self._place(staged, batch.stream, fold, fact, data, cause) for fact, data in encoded.facts]
            last[id(batch)] = staged.position
            appended.append(Appended(records, fold.state))
        return appended

    def _check(self, staged: _Staged, batch: Batch, fold: StreamFold) -> None:
        expected = batch.expected
        if self.names > 1 and any(isinstance(fact, STARTS) for fact in batch.facts):
            assert self._path is not None
            raise StartRefusedError(str(other_names(self._path, self.names)))
        if isinstance(expected, int):
            if fold.version != expected:
                raise StreamConflictError(batch.stream, expected, fold.version, by=self._who(staged, batch.stream))
        elif isinstance(expected, OwnedRun):
            run = fold.run if isinstance(fold, GraphFold) else None
            is_running = run is not None and run.status is RunStatus.RUNNING and run.run == expected.run
            if run is None or not is_running or run.runner != staged.runner:
                text = f"run {expected.run} of {batch.stream} is not this process's any more"
                by = self._who(staged, batch.stream)
                raise StreamConflictError(batch.stream, fold.version, fold.version, text, by)
        elif isinstance(expected, Owned):
            state = fold.state if isinstance(fold, TaskFold) else None
            if state is None or not state.is_owned or state.attempts != expected.attempt:
                text = f"attempt {expected.attempt} of {batch.stream} no longer runs: somebody else recorded its end"
                by = self._who(staged, batch.stream)
                raise StreamConflictError(batch.stream, fold.version, fold.version, text, by)
            if state.cancel_requested_by is not None and not expected.knows_cancel and _ignores_cancel(batch.facts):
                raise CancelUnheardError(
                    batch.stream, fold.version, fold.version, f"{batch.stream} was asked to cancel"
                )

    def _who(self, staged: _Staged, stream: str) -> str:
        """Return the last event of a stream and who recorded it, in words; empty where there is none."""
        mine = next((row for row in reversed(staged.rows) if row[1] == stream), None)
        last = (
            mine
            or self._connection.execute(
                "SELECT position, stream, version, type, type_version, recorded_at, runner FROM events"
                " WHERE stream = ? ORDER BY version DESC LIMIT 1",
                (stream,),
            ).fetchone()
        )
        if last is None:
            return ""
        where = (last[6],)
        runner = self._connection.execute("SELECT user, host, pid FROM runners WHERE position = ?", where).fetchone()
        by = f", recorded by {runner[0]}@{runner[1]} (process {runner[2]})" if runner is not None else ""
        return f"the last is {last[3]} at {last[0]}{by}"

    def _fold(self, staged: _Staged, stream: str) -> StreamFold:
        fold = staged.folds.get(stream) or self._folds.get(stream)
        return fold if fold is not None else load_fold(self._connection, stream)

    def _place(
        self, staged: _Staged, stream: str, fold: StreamFold, fact: Fact, data: str, cause: int | None
    ) -> RecordedEvent:
        staged.position += 1
        if isinstance(fact, RunnerStarted):
            staged.runner = staged.position
        runner = staged.runner if not isinstance(fact, LedgerCreated) else None
        columns = (
            staged.position,
            stream,
            fold.version + 1,
            type(fact).__name__,
            fact.TYPE_VERSION,
            staged.recorded_at_text,
            runner,
            cause,
            data,
        )
        staged.hash = event_hash(staged.hash, columns)
        staged.rows.append((*columns, staged.hash))
        event = recorded_event(
            position=staged.position,
            stream=stream,
            version=fold.version + 1,
            recorded_at=staged.recorded_at,
            runner=runner,
            cause=cause,
            fact=fact,
            hash=staged.hash,
        )
        fold.apply(event)
        return event

    def _write(self, staged: _Staged) -> None:
        self._connection.executemany(
            "INSERT INTO events (position, stream, version, type, type_version, recorded_at, runner, cause, data, hash)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            staged.rows,
        )
        for fold in staged.folds.values():
            fold.write(self._connection)

    def replace_rows(self, tables: Iterable[str], refill: Callable[[sqlite3.Connection], int]) -> int:
        """Empty these tables and let `refill` fill them again, in one commit; return what it returns."""
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            self._check_schema()
            for table in tables:
                connection.execute(f"DELETE FROM {table}")  # noqa: S608
            count = refill(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        finally:
            self._folds.clear()
        return count


def first_event(fact: LedgerCreated) -> Encoded:
    """Return the request that makes a ledger of an empty log."""
    return Encoded(Batch(LEDGER_STREAM, [fact], 0), [(fact, encode(fact))])


def runner_started(stream: str, fact: RunnerStarted, key: str, redaction: Redaction | None) -> Encoded:
    """Return the request that registers this process."""
    return Encoded.of(Batch(stream, [fact], 0), key, redaction)


def _ignores_cancel(facts: Sequence[Fact]) -> bool:
    return any(isinstance(fact, TaskStarted | TaskSucceeded | TaskFailed) for fact in facts)


class StartRefusedError(LedgerUnwritableError):
    """Nothing may start in this ledger any more; what runs may end in it, and is recorded."""


class CancelUnheardError(StreamConflictError):
    """A cancel was recorded that the attempt's runner has not heard of: it decides again, and cancels."""
