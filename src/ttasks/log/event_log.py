"""The event log: append, and nothing else, through one writer a process, many processes a file."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import sqlite3
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Final

from ttasks import clock
from ttasks.errors import LedgerError, LedgerUnwritableError, ReentranceError
from ttasks.events.facts import GraphCancelRequested, RunnerStarted, TaskCancelRequested
from ttasks.log import files, making
from ttasks.log.checkout import describe_git, git_root
from ttasks.log.listener import Listener
from ttasks.log.liveness import RunnerLock
from ttasks.log.lock import WriterLock
from ttasks.log.migrate import SCHEMA_VERSION
from ttasks.log.migrating import bring_up_to_date
from ttasks.log.place import check_place, make_folders
from ttasks.log.reading import Answer, Readers
from ttasks.log.redaction import Redaction
from ttasks.log.runner import describe_runner, working_directory
from ttasks.log.schema import refuse_to_write
from ttasks.log.transaction import Appended, Batch, Encoded, Outcomes, Transaction, runner_started
from ttasks.reentrance import is_mine, section

BUSY_TIMEOUT_S: Final = 30.0
GROUP_MAX: Final = 256
"""How many appends may share a commit: enough for every thread of a big pool."""
TURN_WAIT_S: Final = 0.1
"""How long an append waits to be settled by whoever leads, before it looks for itself."""
FORK_WAIT_S: Final = 1.0
"""How long a fork waits for a commit to end: as long as that is not waiting for other processes."""
DESCRIBE_WAIT_S: Final = 1.0
"""How long closing waits for git to say what commit is checked out."""


class _Request:
    """One caller's append, waiting for its commit.

    `goes_alone`: a commit that it shared has failed; `is_taken_back`: its caller waits no more.
    """

    __slots__ = ("_committed", "_place", "_turn", "batches", "error", "goes_alone", "is_taken_back")

    def __init__(self, batches: Sequence[Encoded]) -> None:
        self.batches = batches
        self._turn = threading.Lock()
        self._turn.acquire()
        self.goes_alone = False
        self.is_taken_back = False
        self.error: Exception | None = None
        self._committed: Sequence[Outcomes] = ()
        self._place = 0

    def go_with(self, committed: Sequence[Outcomes], place: int) -> None:
        """Be at `place` of a commit, which settles all that are in it by what it puts into `committed`."""
        # At once: had each request to be told, Ctrl-C could come between, and what was not told be committed again.
        self._place, self._committed = place, committed

    @property
    def outcome(self) -> list[Appended] | Exception | None:
        """What became of it; None: nothing yet."""
        return self._committed[0][self._place] if self._committed else self.error

    @property
    def is_settled(self) -> bool:
        return bool(self._committed) or self.error is not None

    @property
    def is_over(self) -> bool:
        return self.is_settled or self.is_taken_back

    def wait(self) -> None:
        """Wait until it is settled or has to lead; not for ever, because Ctrl-C may keep a leader from saying so."""
        self._turn.acquire(timeout=TURN_WAIT_S)

    def wake(self) -> None:
        if self._turn.locked():
            self._turn.release()


class _NoTurnError(LedgerUnwritableError):
    """Another process did not let go of the ledger in time."""


class _Turn:
    """Inside a `with`, no other process writes; in memory there is none."""

    def __init__(self, path: Path | None, lock: WriterLock | None, timeout_s: float) -> None:
        self._path = path
        self._lock = lock
        self._timeout_s = timeout_s

    def take(self) -> None:
        """Wait until no other process writes.

        Raises:
            LedgerUnwritableError: it took too long.
        """
        if self._lock is not None and not self._lock.acquire(self._timeout_s):
            raise _NoTurnError(
                f"the ledger {self._path} was locked by another process for {self._timeout_s:g} seconds; "
                "nothing was written. Try again when it is done, or raise busy_timeout"
            )

    def __enter__(self) -> None:
        self.take()

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()


class _Memory:
    """A ledger in memory: there as long as its log is open, or a text that was not kept elsewhere may be asked for."""

    def __init__(self, connection: sqlite3.Connection, lock: AbstractContextManager[object]) -> None:
        self._connection = connection
        self.lock = lock

    def ask(self, question: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """Return what a reader finds out with the connection."""
        with self.lock:
            return question(self._connection)

    def __del__(self) -> None:
        # Newer Pythons warn of connections that are dropped without a word.
        self._connection.close()


class EventLog:
    """One ledger, opened for appending. Get it with `EventLog.open`; threads may share it.

    `ledger` is the ledger's id, `path` is None for one in memory, `readers` answers questions, `text_readers` does so
    also after it was closed. `redaction` is what is kept out of every text before it is written (None: nothing).
    `runner_id` is the id of this process's runner, once it has registered.
    """

    def __init__(
        self, path: Path | None, *, busy_timeout: float, durability: str, redaction: Redaction | None = None
    ) -> None:
        self.path = path
        self._file = str(path)
        self.redaction = redaction
        self.ledger = ""
        self.busy_timeout = busy_timeout
        self.durability = durability
        self.readers = Readers(path, self._ask_in_memory)
        self._users = 0
        self._is_closed = False
        self._begin_unshared()
        _LOGS.add(self)

    def _begin_unshared(self) -> None:
        """Set up what threads share and what the operating system hands out: at the start, and after a fork."""
        self._mutex = threading.RLock()
        self._queue: deque[_Request] = deque()
        self._lead = threading.RLock()
        # Held while the connection is used: by whoever leads, and in memory by readers, who share it.
        self._connection_lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._memory: _Memory | None = None
        self.text_readers = self.readers
        self._transaction: Transaction | None = None
        self._lock = WriterLock(files.lock_path(self.path)) if self.path is not None else None
        self._turn = _Turn(self.path, self._lock, self.busy_timeout)
        self._identity: tuple[int, int] | None = None
        self._names = 1
        self._watchers: dict[str, Callable[[], None]] = {}
        self._listener: Listener | None = None
        self._describer: threading.Thread | None = None
        self._runner_lock: RunnerLock | None = None
        self._registered: RunnerStarted | None = None
        self.runner_id: str | None = None

    # --- opening and closing -----------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        path: Path | None,
        *,
        busy_timeout: float = BUSY_TIMEOUT_S,
        durability: str = "full",
        redaction: Redaction | None = None,
    ) -> EventLog:
        """Return the log of the ledger at `path`, made or migrated where needed; None: a new one in memory.

        Within a process all who open one path share one log. Each of them has to `close` it.

        Args:
            busy_timeout: seconds to wait for other writers.
            durability: ``"full"``, or ``"normal"``, which may lose the last commits on power loss.
            redaction: what is kept out of it.

        Raises:
            NotALedgerError: the file is something else, or a ledger of a newer ttasks. It was left untouched.
            LedgerUnwritableError: it can't be made, locked or written here; or it is of an older version, and a process
                of an older ttasks works with it.
            LedgerError: it is open here already, with another durability, or without some of this redaction.
        """
        if durability not in ("full", "normal"):
            raise ValueError(f"durability must be 'full' or 'normal', got {durability!r}")
        if path is None:
            log = cls(None, busy_timeout=busy_timeout, durability=durability, redaction=redaction)
            log._open()
            log._users = 1
            return log
        real = Path(os.path.realpath(path))
        if is_mine(_OPEN_LOCK):
            raise ReentranceError("opening a ledger")
        with _OPEN_LOCK:
            shared = _OPEN.get(real)
            if shared is None or not shared._is_in_place():
                shared = cls(real, busy_timeout=busy_timeout, durability=durability, redaction=redaction)
                shared._open()
                _OPEN[real] = shared
            elif shared.durability != durability:
                raise LedgerError(f"{real} is open already with durability={shared.durability!r}; close that first")
            elif redaction is not None and not (shared.redaction and shared.redaction.covers(redaction)):
                # Its writer is shared, and what it wrote so far may hold what is to be redacted from now on.
                raise LedgerError(
                    f"{real} is open already, and not all that is to be redacted here is redacted there; close that "
                    "first, or open both with the same redact="
                )
            shared._users += 1
            return shared

    def _open(self) -> None:
        if self.path is not None:
            files.schema_version(self.path)  # before anything is made beside a file that isn't ours
            check_place(self.path, for_writing=True)
        try:
            if self.path is not None:
                make_folders(self.path.parent)
            with self._turn:
                self._connect()
        except (OSError, *files.SQLITE_ERRORS) as error:
            self._forget()
            raise self._unwritable(error) from error
        except BaseException:
            self._forget()
            raise

    def _connect(self) -> None:
        if self.path is None and self.ledger != "":
            raise LedgerError("this ledger was in memory, and is gone: it was closed, or this is a forked process")
        version = identity = None
        if self.path is not None:
            version = files.schema_version(self.path)
            if version is None:
                making.create(self.path)
        connection = files.open_writer(self.path, durability=self.durability)
        try:
            if version is not None:
                refuse_to_write(connection)
            if self.path is not None and version is not None and version < SCHEMA_VERSION:
                bring_up_to_date(connection, self.path, version)
            if self.path is not None:
                status = self.path.stat()
                identity = status.st_dev, status.st_ino
            connection.execute(f"PRAGMA busy_timeout = {int(self.busy_timeout * 1000)}")
            transaction = Transaction(connection, self.path)
            making.begin(transaction)  # in memory, or where an older ttasks was killed before it did so
            first = transaction.ledger()
            if self.ledger not in ("", first.ledger):
                text = f"{self.path} is not the ledger it was: it was replaced. Nothing was written"
                raise LedgerUnwritableError(text)
        except BaseException:
            connection.close()
            raise
        self._connection, self._transaction, self._identity = connection, transaction, identity
        if self.path is None:
            self._memory = _Memory(connection, self._connection_lock)
            self.text_readers = Readers(None, self._memory.ask)
        self.ledger, self._digest_key = first.ledger, first.digest_key

    def close(self) -> None:
        """Give up this use of the log; the last one closes the file.

        Raises:
            ReentranceError: this thread is inside an append to this ledger. Nothing was closed.
        """
        if self._users == 1:
            self._refuse_reentrance("closing a ledger")
        with _OPEN_LOCK:
            self._users -= 1
            if self._users > 0:
                return
            if self.path is not None and _OPEN.get(self.path) is self:
                del _OPEN[self.path]
        # Whatever fails (there may be no memory left), what comes after it is given up all the same.
        with section(), contextlib.ExitStack() as left:
            left.callback(self._forget)
            left.callback(self._close_file)
            left.callback(self.readers.close)
            if self._describer is not None:
                self._describer.join(DESCRIBE_WAIT_S)
            if self._listener is not None:
                self._listener.stop()
                self._listener = None

    def _close_file(self) -> None:
        with self._connection_lock:
            self._is_closed = True
            if self._connection is None:
                return
            try:
                # Closing the last connection checkpoints the WAL, so it is done under the lock like every write.
                with contextlib.suppress(LedgerUnwritableError, OSError), self._turn:
                    self._forget_connection()
            finally:
                if self._runner_lock is not None:
                    self._runner_lock.release()

    def _forget_connection(self) -> None:
        if self._connection is not None and self._memory is None:
            self._connection.close()
        self._connection = self._transaction = self._memory = None
        self.text_readers = self.readers

    def _forget(self) -> None:
        with self._connection_lock:
            runner_lock, self._runner_lock = self._runner_lock, None
            try:
                self._forget_connection()
            finally:
                if self._lock is not None:
                    self._lock.close()
                if runner_lock is not None:
                    runner_lock.leave()

    def _is_in_place(self) -> bool:
        if self.path is None:
            return True
        try:
            status = os.stat(self._file)  # noqa: PTH116 - Path.stat takes twice as long, and this is done in every commit
        except OSError:
            return False
        self._names = status.st_nlink
        return self._identity == (status.st_dev, status.st_ino)

    def _after_fork(self, *, was_quiet: bool) -> None:
        """In a forked child: give up what is the parent's, and begin anew with the next append."""
        if self._connection is not None and was_quiet and self.path is not None:
            # SQLite keeps one note a process of which locks it has on a file. Closing throws away the one that was
            # copied from the parent; relying on that, the child would write without the locks it believes to have.
            self._connection.close()
        elif self._connection is not None:
            _INHERITED.append(self._connection)  # in use, or in memory: it can't be closed here
        if self._memory is not None:
            self._memory.lock = threading.RLock()  # the other may be another thread's, which this process lacks
            _INHERITED.append(self._memory)
        if self._lock is not None:
            self._lock.close()
        if self._runner_lock is not None:
            self._runner_lock.leave()
        self._begin_unshared()

    # --- appending -----------------------------------------------------------------------------------------------

    def append(self, *batches: Batch) -> list[Appended]:
        """Add each batch to the end of its stream: all of them, or none.

        Args:
            batches: one per stream, each with what it expects of its stream (see `Batch`).

        Returns:
            For each batch, its facts as recorded and the state of its stream after them.

        Raises:
            StreamConflictError: somebody appended first. Nothing was written: load and decide again.
            TransitionError: a fact can't follow in its stream's state. Nothing was written.
            LedgerUnwritableError: the disk refused, or nobody let go of the ledger in time. Nothing was written.
            ReentranceError: this thread is inside an append to this ledger. Nothing was written.

        On return the events survive power loss (``synchronous=FULL``, sqlite.org/pragma.html#pragma_synchronous).
        Threads that append at the same time share a commit. An exception that comes from outside while this waits
        (Ctrl-C) leaves it open whether the facts were written: load to see.
        """
        with section():  # a cancel that comes in between is handed over, whoever appends
            outcome = self._append(batches)
        if self._watchers:
            self._tell(batches)
        return outcome

    def _append(self, batches: Sequence[Batch]) -> list[Appended]:
        self._refuse_reentrance("an append")
        request = _Request([Encoded.of(batch, self._digest_key, self.redaction) for batch in batches])
        is_tidy = False
        try:
            with self._mutex:
                self._queue.append(request)
                is_first = len(self._queue) == 1
            if not is_first:  # somebody leads, or is about to
                request.wait()
            if not request.is_settled:
                with self._lead:
                    while not request.is_settled:
                        self._commit(self._group())
                    self._tidy()  # before the lead is let go: a newcomer would take it, for a smaller group
            is_tidy = True
        finally:
            request.is_taken_back = True
            if not is_tidy:
                self._tidy()
        outcome = request.outcome
        assert outcome is not None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def replace_rows(self, tables: Sequence[str], refill: Callable[[sqlite3.Connection], int]) -> int:
        """Empty these tables and let `refill` fill them again, in one commit; return what it returns.

        Raises:
            LedgerUnwritableError: the disk refused. The rows stay as they were.
        """
        self._refuse_reentrance("making the rows again")
        try:
            with section(), self._connection_lock, self._turn:
                return self._writer().replace_rows(tables, refill)
        except sqlite3.Error as error:
            raise self._unwritable(error) from error

    # Ctrl-C may come between any two lines here, and again in what tidies up. So what has to be let go is a lock of C's
    # in a `with`, which nothing can come into, and what may be left undone, somebody else does later.

    def _group(self) -> list[_Request]:
        """Return the requests whose turn it is, oldest first."""
        with self._mutex:
            if len(self._queue) == 1:
                return list(self._queue)
            waiting = list(islice((request for request in self._queue if not request.is_over), GROUP_MAX))
        alone = next((place for place, request in enumerate(waiting) if request.goes_alone), len(waiting))
        return waiting[: alone or 1]

    def _tidy(self) -> None:
        """Wake those whose requests are settled, and one that is not, to lead."""
        with self._mutex:
            if len(self._queue) == 1 and self._queue[0].is_over:
                self._queue.clear()
                return
            over = [request for request in self._queue if request.is_over]
            self._queue = deque(request for request in self._queue if not request.is_over)
            for request in (*over, *islice(self._queue, 1)):
                request.wake()

    def _commit(self, group: list[_Request]) -> None:
        """Settle every request of the group in one commit; where that fails, each gets one of its own later.

        Where it was not this process's turn in time, it fails for all of them.
        """
        committed: list[Outcomes] = []
        for place, request in enumerate(group, -len(group)):  # from the end: its first may be to register this process
            request.go_with(committed, place)
        try:
            self._commit_together(group, committed)
        except Exception as error:  # noqa: BLE001 - it goes to the caller whose append this is
            if not committed and len(group) == 1:
                group[0].error = error
            for request in group:
                request.goes_alone = True
                if isinstance(error, _NoTurnError):  # each of them has waited as long as it may
                    request.error = LedgerUnwritableError(str(error))

    def _commit_together(self, group: list[_Request], committed: list[Outcomes]) -> None:
        registers: str | None = None
        try:
            with self._connection_lock:
                if self._is_closed:  # an append that was under way, or what git says, comes too late
                    text = f"the ledger {self.path or files.MEMORY} was closed; nothing was written. Open it again"
                    raise LedgerUnwritableError(text)
                try:
                    self._turn.take()
                    writer = self._writer()
                    wanted = [request.batches for request in group]
                    if writer.runner is None:
                        registers, started = self._register()
                        wanted.insert(0, [runner_started(registers, started, self._digest_key, self.redaction)])
                    writer.commit(wanted, clock.now, committed)
                finally:
                    if self._lock is not None and self._lock.descriptor is not None:
                        fcntl.flock(self._lock.descriptor, fcntl.LOCK_UN)
        except (OSError, sqlite3.Error) as error:
            raise self._unwritable(error) from error
        if registers is not None:
            self._describe_runner(registers, writer.runner)

    def _writer(self) -> Transaction:
        """Return what writes into the ledger, for a caller who holds both locks."""
        if self._connection is None:
            self._connect()
        elif not self._is_in_place():
            # SQLite would go on writing into a file that has lost its name, and lose it with the process.
            raise LedgerUnwritableError(
                f"the ledger {self.path} was deleted or replaced while it was in use; nothing was written. "
                "Put it back, or open the new one"
            )
        assert self._transaction is not None
        self._transaction.names = self._names
        return self._transaction

    def _register(self) -> tuple[str, RunnerStarted]:
        """Return what registers this process; from before that is recorded its lock says that it lives."""
        runner_id = clock.new_id()
        if self._runner_lock is not None:  # of a registration that failed, or that Ctrl-C hid from us
            self._runner_lock.release()
        if self.path is not None:
            self._runner_lock = RunnerLock(self.path, runner_id)
        self.runner_id, self._registered = runner_id, describe_runner()
        return f"runner-{runner_id}", self._registered

    def moved_to(self) -> str | None:
        """Return the folder that this process is in; None: the one in which it registered, or it has not yet."""
        here = working_directory()
        return here if self._registered is not None and here != self._registered.cwd else None

    def _unwritable(self, error: Exception) -> LedgerUnwritableError:
        what = f"the ledger {self.path or files.MEMORY} can't be written: {error}; nothing was written"
        if "locked" in str(error):
            what += f". Another program holds it, and {self.busy_timeout:g} seconds were not enough"
        return LedgerUnwritableError(what)

    # --- who is told, who appends ------------------------------------------------------------------------------------

    def watch(self, stream: str, heard: Callable[[], None]) -> None:
        """Call `heard`, on any thread and perhaps more than once, when somebody asks for the cancel of `stream`."""
        self._watchers[stream] = heard
        if self._listener is not None or self.path is None:
            return
        # Where the system has no thread to give, the work goes on. A cancel by another process is met at its end.
        with section(), self._mutex, contextlib.suppress(RuntimeError):
            if self._listener is None and self._users > 0:
                self._listener = Listener(self.readers, self._watchers)

    def unwatch(self, stream: str) -> None:
        """Forget the watcher of `stream`."""
        self._watchers.pop(stream, None)

    def _tell(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            is_request = batch.expected is None and any(
                isinstance(fact, TaskCancelRequested | GraphCancelRequested) for fact in batch.facts
            )
            heard = self._watchers.get(batch.stream) if is_request else None
            if heard is not None:
                heard()

    def _describe_runner(self, stream: str, position: int | None) -> None:
        """Find out about the git checkout in a thread: it can take long, and no run waits for it."""

        def describe() -> None:
            # A ledger that went away meanwhile, or a folder that can't be looked into, lacks only this.
            with contextlib.suppress(LedgerError, OSError):
                root = git_root()
                if root is not None:
                    self.append(Batch(stream, [describe_git(root)], None, position))

        describer = threading.Thread(target=describe, name="ttasks-describe", daemon=True)
        with contextlib.suppress(RuntimeError):  # no thread is to be had: the runner stays without a description
            describer.start()
            self._describer = describer

    def _refuse_reentrance(self, what: str) -> None:
        """Refuse what would wait for a lock that this very thread holds: a signal handler came in between."""
        if is_mine(self._lead) or is_mine(self._mutex) or is_mine(self._connection_lock):
            raise ReentranceError(what)

    def _ask_in_memory(self, question: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """Return what a reader finds out with the connection of a ledger in memory."""
        if is_mine(self._connection_lock) and self._connection is not None and self._connection.in_transaction:
            raise ReentranceError("reading a ledger in memory")
        # No generator that lends it: Ctrl-C between two lines of that would leave both locks held.
        with section(), self._connection_lock:
            if self._connection is None:
                self._connect()
            assert self._connection is not None
            return question(self._connection)

    def __repr__(self) -> str:
        return f"EventLog({str(self.path or files.MEMORY)!r})"


_OPEN: dict[Path, EventLog] = {}
_OPEN_LOCK = threading.RLock()
_LOGS: weakref.WeakSet[EventLog] = weakref.WeakSet()
_HELD = threading.local()
_INHERITED: list[object] = []


def _before_fork() -> None:
    """Wait until no thread is inside a transaction: a child would inherit that half done."""
    _HELD.logs = [(log, log._connection_lock.acquire(timeout=FORK_WAIT_S)) for log in list(_LOGS)]


def _after_fork_in_parent() -> None:
    for log, is_held in _HELD.logs:
        if is_held:
            log._connection_lock.release()


def _after_fork_in_child() -> None:
    global _OPEN_LOCK
    _OPEN_LOCK = threading.RLock()
    for log, is_held in _HELD.logs:
        lock = log._connection_lock
        log._after_fork(was_quiet=is_held)
        if is_held:  # texts of a closed ledger in memory are still read under it
            lock.release()


def _at_exit() -> None:
    """Let the runner's description be recorded, for a moment, where a program ends without closing its store."""
    for log in list(_OPEN.values()):
        if log._describer is not None:
            log._describer.join(DESCRIBE_WAIT_S)
        if log._runner_lock is not None:
            log._runner_lock.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
